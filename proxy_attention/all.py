"""Everything a notebook needs: `from proxy_attention.all import *`, after `from fastai.vision.all import *`

What is not here is imported from its module."""
from types import ModuleType as _ModuleType
from .core import ProxyWarning
from .data.checks import check_images
from .data.images import ImageFolder, ImageTable
from .data.digits import accuracy_on, digits, digits_learner, digits_net, regions, test_sets
from .data.beds import dominoes, no_shortcut, one_colour, swatches, two_colours, two_digits
from .data.cues import on_places, place_test_sets, planted
from .data.datasets import known_sets, open_images
from .data.objects import draw_boxes, read_objects, show_objects
from .data.groups import Grouped, grouped_data, grouped_table
from .data.networks import load_run
from .attribution.layers import find_layer, find_layers
from .attribution.cams import CAM, EigenCAM, EigenGradCAM, FinerCAM, GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM, RefineCAM, XGradCAM
from .attribution.perturbation import AblationCAM, ScoreCAM
from .attribution.transformers import AttentionRollout, GradRollout, LeGrad
from .attribution.methods import Captum, Suspect
from .attribution.targets import Region
from .attribution.finer import Enlarged, Smoothed
from .attribution.tasks import Distance, find_task
from .attribution.clusters import heat_clusters
from .masking.fills import Augmented
from .masking.masker import Masker
from .interpret.heats import heat_on, heats_of_labels, show_where
from .interpret.interpretation import HeatDrift, ProxyInterpretation
from .interpret.probe import probe
from .interpret.metrics import AttentionOn, explanation_scores, pitfalls, randomised
from .interpret.use import explain_images
from .interpret.choosing import SwappedAccuracy, swapped_accuracy
from .interpret import labels as _labels, moves as _moves, pixels as _pixels # they add the probes for other kinds of labels
from .proxy.schedule import Plateau
from .proxy.selection import PerClass
from .proxy.losses import interpret_train
from .proxy.callback import ProxyAttention
from .proxy.successor import IfCarried
from .proxy.recipes import recipes
from .experiment.checkpoint import Checkpoint, load_best
from .experiment.runs import read_runs
from .experiment.logs import RunBoard
from .experiment.prune import Prune
from .experiment.train import resume_run, train_folder
from .experiment.arms import with_proxies
from .experiment.compare import Comparison, compare
from .experiment.sweep import Sweep, read_sweep
from .report.look import Report
from .report.build import report_runs

__all__ = [k for k,v in globals().items() if not k.startswith('_') and not isinstance(v, _ModuleType)]
