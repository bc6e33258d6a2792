"Everything a notebook needs: `from proxy_attention.all import *`, after `from fastai.vision.all import *`"
from .core import *
from .heatmap import *
from .selection import *
from .schedule import *
from .data import *
from .attribution import *
from .masking import *
from .serving import *
from .explain import *
from .callback import *
from .runs import *
from .train import *
from .demo import *
