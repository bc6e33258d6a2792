"""See what your fastai vision model looks at, and train it to look elsewhere too

`fit_proxy` trains a network, finds out what it leans on, and trains a successor without that: what carries its predictions is filled with pixels of other images while the images are loaded (*proxy images*; `learn.proxy_attention.show()` shows them). Where it finds nothing, no image is masked. Your files are never changed, and validation images are never masked.

Modules:

- `proxy_attention.skill`: How an assistant probes, treats and compares fastai image classifiers"""

__version__ = '0.2.0'
