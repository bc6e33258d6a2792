"See what your fastai vision model looks at, and train it to look elsewhere too"
__version__ = '0.2.0'
