"""The paper's method in plain PyTorch, without this library: activation and gradient attention.

Zagoruyko & Komodakis, Paying More Attention to Attention, ICLR 2017. The library adds any network
and layer, unequal sizes, safe numerics, caches and speed; the losses are the same numbers.
"""

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional


def attention_map(features: Tensor) -> Tensor:
    """F_sum^2 of features (N, C, H, W), as unit vectors (N, H * W) (section 3.1)."""
    return functional.normalize(features.pow(2).sum(dim=1).flatten(1), dim=1)


def attention_loss(student: list[Tensor], teacher: list[Tensor], beta: float = 1e3) -> Tensor:
    """beta times the mean squared difference of maps, summed over layers (the authors' code)."""
    pairs = zip(student, teacher, strict=True)
    differences = [attention_map(one) - attention_map(other) for one, other in pairs]
    return beta * torch.stack([one.pow(2).mean() for one in differences]).sum()


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """T^2 times the KL divergence of softened predictions (Hinton et al. 2015)."""
    log_student = functional.log_softmax(student / temperature, dim=1)
    log_teacher = functional.log_softmax(teacher / temperature, dim=1)
    divergence = functional.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return temperature**2 * divergence


def input_gradient(network: nn.Module, images: Tensor, labels: Tensor, keep: bool) -> Tensor:
    """J: the gradient of the cross-entropy at the images; kept differentiable for the student."""
    images = images.detach().requires_grad_()
    loss = functional.cross_entropy(network(images), labels, reduction="sum")
    return torch.autograd.grad(loss, images, create_graph=keep)[0]


def gradient_loss(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """beta/2 ||J_S - J_T||_2, batch mean (Eq. 4): its gradient is a double backpropagation."""
    return beta / 2 * (student - teacher).flatten(1).norm(dim=1).mean()


class Network(nn.Module):
    """Three groups of layers, whose outputs are compared, and a classifier."""

    def __init__(self, width: int, classes: int = 10) -> None:
        super().__init__()
        sizes = [3, width, 2 * width, 4 * width]
        self.groups = nn.ModuleList(
            nn.Sequential(nn.Conv2d(one, other, 3, 2, 1), nn.BatchNorm2d(other), nn.ReLU())
            for one, other in itertools.pairwise(sizes)
        )
        self.classifier = nn.Linear(4 * width, classes)
        self.features: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, and keep the groups' outputs."""
        self.features = []
        for group in self.groups:
            images = group(images)
            self.features.append(images)
        return self.classifier(images.mean(dim=(2, 3)))


def main(steps: int = 3) -> float:
    """Train a student for some steps, and return the last loss."""
    torch.manual_seed(0)
    student, teacher = Network(8), Network(32).eval().requires_grad_(False)  # trained, of course
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    images, labels = torch.rand(16, 3, 32, 32), torch.randint(10, (16,))
    for step in range(steps):
        with torch.no_grad():
            targets = teacher(images)
        logits = student(images)
        loss = 0.1 * functional.cross_entropy(logits, labels)
        loss = loss + 0.9 * distillation_loss(logits, targets)
        falling = 1e3 * (1 - step / steps)  # with distillation, beta falls during training
        loss = loss + attention_loss(student.features, teacher.features, falling)
        own = input_gradient(student, images, labels, keep=True)
        loss = loss + gradient_loss(own, input_gradient(teacher, images, labels, keep=False), 0.01)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


if __name__ == "__main__":
    print(f"loss {main():.3f}")
