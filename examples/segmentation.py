"""Semantic segmentation: a LR-ASPP learns from an FCN, with attention and per-pixel distillation.

Both are torchvision's and return dictionaries; their logits, (N, classes, H, W), are found under
"out". Here both are small and untrained and the images random: put your own in their place.
"""

import torch
from torchvision.models.segmentation import fcn_resnet50, lraspp_mobilenet_v3_large

import attention_transfer as at

CLASSES, VOID = 4, 255


def main(steps: int = 2, size: int = 64) -> float:
    """Train for a few steps, and return the last loss."""
    student = lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=CLASSES
    ).train()
    teacher = fcn_resnet50(weights=None, weights_backbone=None, num_classes=CLASSES)
    images = torch.rand(2, 3, size, size)
    labels = torch.randint(CLASSES, (2, size, size))
    labels[:, :4] = VOID  # pixels without a label do not count
    transfer = at.Transfer(
        student,
        teacher,
        terms=[
            *at.distillation_terms(alpha=0.5, temperature=4.0, ignore_index=VOID),
            at.ActivationAttention(beta=1000.0, pairs="auto"),
        ],
        example_input=images[:1],
    )
    optimizer = torch.optim.SGD(transfer.parameters(), lr=0.01, momentum=0.9)
    for _ in range(steps):
        out = transfer(images, labels)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    assert out.logits is not None
    print({name: round(float(value), 4) for name, value in out.terms.items()})
    print("pairs:", list(out.maps["activation_attention"]), "logits:", tuple(out.logits.shape))
    return out.loss.item()


if __name__ == "__main__":
    main()
