"""Trained networks and images in any form that users have them: ``at.load``, and what maps need."""

from attention_transfer.inference.classifier import Classifier, Prediction, load

__all__ = ["Classifier", "Prediction", "load"]
