"""Fast double backward: convolution and batch normalisation with second derivatives of our own.

Gradient-based attention needs the gradient J = dL/dx of the loss at the input, and then the
gradient of a function of J in the weights. PyTorch can do this, but slowly.

Inside ``with DoubleBackward() as double:`` a network's calls of ``conv2d`` and ``batch_norm`` are
answered by functions of this package. The network, its modules and its state dict are not touched.
"""

from attention_transfer.double_backward.mode import DoubleBackward
from attention_transfer.double_backward.synchronized_batch_norm import SynchronizedBatchNorm

__all__ = ["DoubleBackward", "SynchronizedBatchNorm"]
