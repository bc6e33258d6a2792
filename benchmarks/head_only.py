"""Can a background be unlearned in the last layer alone? `python benchmarks/head_only.py DATA` writes `head_only.csv`

Waterbed (`waterbed.py`) at 128 pixels: land birds and water birds on forest and sea. EfficientNet-Lite0 with its ImageNet weights is run,
never trained; only a linear layer is fitted to what it gives. No group label anywhere but in the test.
Each seed draws another bed: places, validation and order. Beds with seed 0 were used for choosing: kept share (.2, .3), served images
averaged or not, and four penalties were looked at there, with the same birds in the test but on other places; the recipe's own share
was kept, and the penalty was set by the digits of the lesson. Nobody looked at the seeds from 11 on.
Every run is kept in OUT: the same command goes on where it was stopped."""
import sys, warnings
from functools import partial
from pathlib import Path
import torch
from fastai.vision.all import CrossEntropyLossFlat, Flip, ImageDataLoaders, Learner, Normalize, accuracy, set_seed
from fastcore.script import call_parse
from proxy_attention.attribution.methods import Suspect
from proxy_attention.data.cues import groups
from proxy_attention.experiment.compare import compare
from proxy_attention.proxy.head import body_outputs, fit_linear, last_layer, set_layer
sys.path.insert(0, str(Path(__file__).parent))
from bench_tables import keep_table
from evidence import Half
from waterbed import lite0, make, unpacked

beds = {'0.95':dict(rho=.95), '1.0':dict(rho=1.), '0.5':dict(rho=.5), 'natural':dict(natural=True)}

def learner(data, out, bed, seed):
    "The bed of this seed, and a body as ImageNet has made it; flips only"
    set_seed(seed)
    path = make(data, out/f'{bed}_{seed}', seed=seed, **beds[bed])
    dls = ImageDataLoaders.from_folder(path, train='train', valid='valid', bs=64, num_workers=0,
                                       batch_tfms=[Flip(), Normalize.from_stats([.5]*3, [.5]*3)])
    return Learner(dls, lite0(2), loss_func=CrossEntropyLossFlat(), metrics=accuracy, cbs=Half()).to_channelslast()

def plain(learn, epochs, lr): learn.fit_head(None, passes=1)

def own_heat(learn, epochs, lr, recipe='background', **kwargs):
    "First a head on images as they are; its heat says what is kept"
    learn.fit_head(None, passes=1)
    learn.fit_head(recipe, **kwargs)

def own_heat_at_224(learn, epochs, lr):
    "The same, and the body sees larger images where it is asked for heat"
    learn.fit_head(None, passes=1)
    learn.fit_head('background', suspect=Suspect(learn, size=224))

def imagenet_heat(learn, epochs, lr, recipe='background', **kwargs):
    "The heat of the 1,000 classes that the body comes with, at 224 pixels"
    if recipe=='rehearsed': learn.fit_head(None, passes=1) # the probe asks a head that knows the classes
    learn.fit_head(recipe, suspect=Suspect(lite0(None), size=224), **kwargs)

which = {
    'plain':plain, 'background':own_heat, 'background, at 224 px':own_heat_at_224, 'background, ImageNet heat':imagenet_heat,
    'no knob':partial(own_heat, recipe='rehearsed'),
    'random part':partial(own_heat, rule='random', area=.55, max_area=1., fill='swap')}

@call_parse
def main(data:str, # Folder of the real data
         out:str='runs/head_only', # Beds and runs are kept here
         bed:str='0.95', # Share of the training birds on their own place, or `natural`: photographs as they are
         seeds:str='11,12,13,14,15,16,17,18,19,20', # Each of another bed
         only:str='', # Only these arms, separated by semicolons
         n_jobs:int=1, # Processes
         csv:str=str(Path(__file__).with_suffix('.csv')), # Where the table goes
):
    "Fit the last layer with and without proxies, and test each group"
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)
    out = Path(out).resolve()
    raw = unpacked(data, out)
    def tests(learn): return groups(learn.dls.path)
    names = list(groups(make(raw, out/f'{bed}_{seeds.split(",")[0]}', seed=int(seeds.split(',')[0]), **beds[bed])))
    of = {k:(lambda learn,k=k: learn.dls.test_dl(groups(learn.dls.path)[k], with_labels=True)) for k in names}
    mine = {k:which[k] for k in ['plain',*only.split(';')]} if only else which
    res = compare(partial(learner, raw, out, bed), mine, [int(o) for o in seeds.split(',')], 2,
                  dict(valid=lambda learn: learn.dls.valid)|of, 1e-3, 'plain', folder=out/f'runs_{bed}', n_jobs=n_jobs)
    print(f'{bed}\n{res.table(diff=False).to_string()}', flush=True)
    keep_table(res.df.assign(bed=bed).round(5), Path(csv), ['bed','arm','seed'])
