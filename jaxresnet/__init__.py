"""A compact CIFAR-10 ResNet in JAX and Flax.

Importing the package loads no heavy library; `jaxresnet.config` loads neither JAX nor TensorFlow.
"""

__version__ = "0.2.0"
