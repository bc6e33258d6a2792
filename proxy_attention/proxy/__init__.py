"Train on what the model did not look at"
from . import recipes # the class methods of `ProxyAttention`
