"""Region-wise photorealistic image manipulation (TCP, arXiv 2108.08674) in TensorFlow.

Importing the package alone is light: TensorFlow is loaded by the modules that need it, not here.
"""

__version__ = "0.1.0"
