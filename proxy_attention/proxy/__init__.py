"Train on what the model did not look at"
from . import recipes, head # the class methods of `ProxyAttention`, and `Learner.fit_head`
