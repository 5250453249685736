"""Object detection: a detector's backbone learns where another's looks, beside the detector's loss.

The transfer needs no logits: the student here is the backbone alone, which returns a dictionary of
feature maps. The detector's own loss is added to ``out.loss``. Networks are small and untrained and
the images random: put your own in their place.
"""

import torch
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

import attention_transfer as at


def main(steps: int = 2, size: int = 128) -> float:
    """Train for a few steps, and return the last loss."""
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=5)
    detector = FasterRCNN(backbone, num_classes=3, min_size=size, max_size=size).train()
    teacher = resnet_fpn_backbone(backbone_name="resnet34", weights=None)
    images = torch.rand(2, 3, size, size)
    boxes = [
        {"boxes": torch.tensor([[8.0, 8.0, 60.0, 60.0]]), "labels": torch.tensor([1])}
        for _ in images
    ]
    transfer = at.Transfer(
        detector.backbone,
        teacher,
        terms=[at.ActivationAttention(beta=1000.0, pairs="body.layer?:body.layer?")],
        example_input=images[:1],
    )
    optimizer = torch.optim.SGD(detector.parameters(), lr=0.001, momentum=0.9)
    for _ in range(steps):
        batch, _ = detector.transform(list(images))  # resized and normalized as the detector does
        out = transfer(batch.tensors)
        loss = out.loss + sum(detector(list(images), boxes).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print("pairs:", list(out.maps["activation_attention"]), "logits:", out.logits)
    return loss.item()


if __name__ == "__main__":
    main()
