"""Ridgescope: does the random-matrix theory of ridge regression describe your deep networks?"""

__version__ = "0.1.0"
