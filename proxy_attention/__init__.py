"""See what your fastai vision model looks at, and train it to look elsewhere too

Modules:

- `proxy_attention.skill`: How an assistant probes, treats and compares fastai image classifiers"""

__version__ = '0.2.0'
