"""See what your fastai vision model looks at, and train it to look elsewhere too

`fit_proxy` trains a network, finds out what its predictions depend on, and trains a successor without that: while training images are loaded, this part of them is replaced by pixels of other images (*proxy images*; `learn.proxy_attention.show()` shows them). If it finds nothing, no image is masked. Your files are never changed, and validation images are never masked.

Modules:

- `proxy_attention.skill`: How an assistant probes, treats and compares fastai image classifiers"""

__version__ = '0.2.0'
