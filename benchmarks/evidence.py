"""The evidence: does it help? `python benchmarks/evidence.py DATA` trains every arm on every bed and writes `benchmarks/evidence.csv`

Every run is kept in OUT: the same command goes on where it was stopped, and trains only what is missing.
DATA holds MNIST's 10,000 test digits and CIFAR-10, see `bed_data.py`. `nbs/results.ipynb` reads the table."""
import sys, warnings
from functools import partial
from pathlib import Path
import numpy as np, pandas as pd, torch
from fastcore.script import call_parse
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.transforms import IndexSplitter, get_image_files, parent_label
from fastai.learner import Learner
from fastai.metrics import accuracy
from fastai.torch_core import set_seed
from fastai.vision.core import PILImage
from fastai.vision.data import ImageBlock, ImageDataLoaders
from timm.models.vision_transformer import VisionTransformer
from proxy_attention.experiment.arms import *
from proxy_attention.proxy.callback import ProxyAttention
from proxy_attention.experiment.compare import Comparison, compare
from proxy_attention.data.digits import digits_net, fc_net, regions
from proxy_attention.interpret.heats import heat_on
from proxy_attention.attribution.heatmap import heat_share
from proxy_attention.interpret.metrics import deletion, explanation_scores, insertion
sys.path.insert(0, str(Path(__file__).parent))
from bed_data import make
from bench_tables import keep_table
from gain_beds import Half

seeds = (1,2,3,4,5) # seed 0 is for tuning; `shortcut` was given another fill after a look at these
shortcut = ProxyAttention.shortcut

class Held(PILImage):
    "An image that is read once a run"
    kept = {}
    @classmethod
    def create(cls, fn, **kwargs):
        if fn not in cls.kept: cls.kept[fn] = super().create(fn, **kwargs)
        return cls.kept[fn]

def learner(path, seed, net=digits_net, bs=64, valid='valid'):
    "A network on the images of a bed, with what `seed` draws"
    set_seed(seed)
    Held.kept.clear()
    dls = ImageDataLoaders.from_folder(path, train='train', valid=valid, bs=bs, num_workers=0, img_cls=Held)
    return Learner(dls, net(n_out=dls.c).to(memory_format=torch.channels_last), metrics=accuracy, cbs=Half())

def part(name): return lambda learn: learn.dls.test_dl(get_image_files(learn.dls.path/name).sorted(), with_labels=True)

def attention(learn, n=200):
    """Where the model looks in images with the shortcut, and how much hangs on the hottest pixels of images without one

    The first is a share of GradCAM's heat, another method than the one that masks;
    the second is measured with a blur, no fill that was trained with."""
    some = lambda part,n: (files := get_image_files(learn.dls.path/part).sorted())[::max(1, len(files)//n)][:n]
    files = some('aligned', n)
    heat = heat_on(learn, files, 'GradCAM')
    scores = explanation_scores(
        learn, some('plain', n//2), 'GradCAM',
        metrics={f.__name__:partial(f, steps=14, fill='blur') for f in (deletion, insertion)}, n=None)
    return ({f'on {k}':float(heat_share(heat, torch.from_numpy(o)).nanmean()) for k,o in regions(learn.dls.path, files).items()}
            | {f'{m}, {k}':v for m in scores for k,v in scores[m].drop('centre').items()})

def vit(n_out, size=28): return VisionTransformer(size, 4, num_classes=n_out, embed_dim=64, depth=4, num_heads=4)

# 1. shortcuts
every = ('no proxy','masktune','shortcut','probed','default','random mask','thesis','upweighted errors','more steps',
         'centre mask','cutout','random erasing','late')
own = {'shortcut, own place only':with_proxies(shortcut, fill='swap')}
wide = {'shortcut, area .2':with_proxies(shortcut, area=.2)}
flips = {k:part(k) for k in ('plain','aligned','flipped')}
chosen = lambda *names: {o:arms[o] for o in names}
beds = dict(
    decoy=chosen('no proxy','masktune','probed','late')|{'late, own place only':with_proxies(ProxyAttention.late, fill='swap')},
    dominoes_95=chosen('no proxy','masktune','probed')|wide,
    masktune=chosen('no proxy','masktune','shortcut','probed')|own,
    random_corner=chosen('no proxy','masktune','probed'),
    dominoes_100=chosen('no proxy','masktune','probed')|wide)
fc = partial(fc_net, size=(28,28))

def shortcuts(run):
    for bed,some in beds.items():
        run(bed, lambda path,seed,net=fc if bed=='decoy' else digits_net: learner(path, seed, net), some, flips, measure=attention)

def all_arms(run): run('two_colours', learner, chosen(*every)|own, flips, measure=attention)

def honest(run):
    "The same networks trained without a shortcut: what could be reached"
    for bed,net in dict(mnist_halves=digits_net, mnist=fc, cars=digits_net).items():
        run(bed, lambda path,seed,net=net: learner(path, seed, net), chosen('no proxy'), dict(plain=part('plain')))

# 2. no shortcut
def clean(run):
    some = chosen('no proxy','random erasing','masktune','default','shortcut','probed','late')
    run('mnist_1k', lambda path,seed: learner(path, seed, bs=16), some, dict(plain=part('plain')))
    run('cifar', learner, {o:some[o] for o in ('no proxy','random erasing','default','late','probed')},
        dict(plain=part('plain')), n_train=2000)

# 3. less data, faster
def budget(run):
    some = chosen('no proxy','default','late')
    for epochs in (2,16):
        run('mnist_1k', lambda path,seed: learner(path, seed, bs=16), some, dict(plain=part('plain')), epochs=epochs)
    for n in (250,): run('mnist', lambda path,seed: learner(path, seed, bs=16), some, dict(plain=part('plain')), n_train=n)

# 4. a transformer
def transformer(run):
    some = chosen('no proxy') | {f'shortcut, {o}':with_proxies(shortcut, attribution=o) for o in ('LayerCAM','LeGrad')}
    make_vit = lambda path,seed: learner(path, seed, vit)
    run('two_colours', make_vit, some, flips, lr=1e-3, n_train=1000, tag='vit')

# 5. the leak
def stages(learn, epochs, lr, redraw, n=4):
    "The thesis' protocol: training in stages; `redraw`: with a split that is drawn anew for each"
    items,rng = [*learn.dls.train_ds.items, *learn.dls.valid_ds.items], np.random.default_rng(0)
    for i in range(n):
        if redraw:
            valid = set(rng.permutation(len(items))[:len(learn.dls.valid_ds)].tolist())
            split = DataBlock((ImageBlock(Held), CategoryBlock), get_y=parent_label, splitter=IndexSplitter(sorted(valid)))
            learn.dls = split.dataloaders(items, path=learn.dls.path, bs=learn.dls.bs, num_workers=0)
        learn.fit_one_cycle(epochs//n, lr)

def leak(run):
    some = {'fixed split':partial(stages, redraw=False), 'split drawn anew each stage':partial(stages, redraw=True)}
    run('cifar', learner, some, {'its own validation':lambda learn: learn.dls.valid, 'images never seen':part('plain')},
        epochs=12, n_train=2000, baseline='fixed split', tag='leak')

parts = dict(
    shortcuts=shortcuts, clean=clean, honest=honest, all_arms=all_arms, leak=leak, budget=budget, transformer=transformer)

@call_parse
def main(data:str, # Folder of the real data
         out:str='runs/evidence', # Beds and runs are kept here
         only:str='', # Only these parts, separated by commas
         n_jobs:int=2, # Processes
         gather:bool=False, # Train nothing, only write the table of what is there
         csv:str=str(Path(__file__).with_suffix('.csv')), # Where the table goes
):
    "Train every arm on every bed with every seed"
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)
    tables = []
    def run(bed, make_net, which, tests, epochs=8, n_train=4000, lr=3e-3, baseline='no proxy', measure=None, tag=''):
        name = '-'.join(filter(None, [what,bed,tag,f'{epochs}ep',f'{n_train}']))
        where = Path(out).resolve()/'runs'/name
        at = partial(make, bed, str(Path(data).resolve()), str(Path(out).resolve()/'beds'), n_train=n_train, n_test=1000)
        if gather: res = Comparison.kept(where, which, baseline)
        else:
            print(f'\n{name}', flush=True)
            res = compare(lambda seed: make_net(at(seed=seed), seed), which, seeds, epochs, tests, lr, baseline,
                          measure=measure, folder=where, n_jobs=n_jobs)
            print(res.table(diff=False).to_string(), flush=True)
        if res is not None:
            tables.append(res.df.assign(part=what, bed=bed, net=tag if tag=='vit' else '', epochs=epochs, n_train=n_train))
    for what in only.split(',') if only else parts: parts[what](run)
    if tables: keep_table(pd.concat(tables).round(5), Path(csv), ['part','bed','net','epochs','n_train','arm','seed'])
