"""Does swapping the rest cure a background? `python benchmarks/waterbed_cure.py DATA` writes `waterbed_cure.csv`

Waterbed (`waterbed.py`): land birds and water birds on forest and sea; in training the place agrees with the bird in a share `bed`.
EfficientNet-Lite0 with its ImageNet weights, all layers trained, 128 pixels, no group label anywhere. Each seed draws another bed:
places, validation, weights of the head and order.
Fill, kept area and whose heat it is were settled on seed 1 and half of the test images, by another script with loaders of its own:
five settings were tried there. Nobody looked at the seeds from 11 on for it.
Rows before 27 November have heat of one grid, 4×4 or 7×7; those with `128 px` in their names, and `fine-tuned` ones, of two grids.
The heat at 128 px, and the last layer after it, were looked at on seed 1; the rows of `background, ImageNet heat at 128 px` are the tests
of the same fits before their last layer was fitted again.
Rows of the beds 1.0, natural and 0.5 ran on an H200 up to seed 15 (16 on 0.5, `no proxy` 17), the others on two CPU cores, from seed 18 on
with `--accuracy-only`. Those of own heat with `two grids` or `otsu` ran on an H200 (`two grids` is the arm `background`, renamed);
those at 128 px on .95, with half of Otsu's threshold, the hottest 30 % of natural and the fine-tuned ones on two
CPU cores, the others on an H100.
`one cycle`, `attentive_cutmix` and `erasing` on `natural` are in `gain_natural.csv` (`--accuracy-only`, two CPU cores).
Every run is kept in OUT: the same command goes on where it was stopped."""
import sys, warnings
from functools import partial
from pathlib import Path
import pandas as pd, torch
from fastai.vision.all import CrossEntropyLossFlat, Flip, ImageDataLoaders, Learner, Normalize, accuracy, set_seed
from fastcore.script import call_parse, store_true
from proxy_attention.attribution.methods import Suspect
from proxy_attention.experiment.arms import arms, random_erasing, with_proxies
from proxy_attention.experiment.compare import compare
from proxy_attention.interpret.choosing import swapped_accuracy
from proxy_attention.proxy.fits import one_cycle
sys.path.insert(0, str(Path(__file__).parent))
from bench_tables import keep_table
from gain_beds import body_and_head
from waterbed import beds, group_tests, lite0, make, thirty, unpacked

def learner(raw, out, bed, seed, fine_tuned=False):
    "Pretrained, flips only, on the bed of this seed; `fine_tuned`: the body is frozen, so that the head is trained first"
    set_seed(seed)
    path = make(raw, out/f'{bed}_{seed}', seed=seed, **beds[bed])
    dls = ImageDataLoaders.from_folder(path, train='train', valid='valid', bs=32, num_workers=0,
                                       batch_tfms=[Flip(), Normalize.from_stats([.5]*3, [.5]*3)])
    split = dict(splitter=body_and_head) if fine_tuned else {}
    learn = Learner(dls, lite0(2), loss_func=CrossEntropyLossFlat(), metrics=accuracy, **split).to_bf16().to_channelslast()
    if fine_tuned: learn.freeze()
    return learn

def suspect(**kwargs): return Suspect(lite0(None), **kwargs)

def then_head(learn, epochs, lr, **kwargs):
    "All layers on images whose rest is swapped, and then the last layer once more; the groups are tested in between as well"
    with_proxies('background', **kwargs, **thirty)(learn, epochs, lr)
    learn.before = {f'{k}, before':learn.validate(dl=f(learn))[1] for k,f in group_tests().items()}
    learn.fit_head('background', suspect=kwargs.get('attribution'), **thirty)

at_128 = dict(attribution=suspect(), steps=['p',3])
half = dict(rule='rest_of_otsu', threshold=.5)
which = {
    'no proxy':arms['no proxy'], 'rehearsed':with_proxies('rehearsed'), 'background':with_proxies('background', **thirty),
    'background, heat of the ImageNet classes':with_proxies('background', attribution=suspect(size=224), steps=['p',3], **thirty),
    'background, ImageNet heat at 128 px':with_proxies('background', **at_128, **thirty),
    'background, ImageNet heat at 128 px, otsu':with_proxies('background', **at_128, rule='rest_of_otsu'),
    'background, ImageNet heat at 128 px, half of otsu':with_proxies('background', **at_128, **half),
    'background, otsu':with_proxies('background', rule='rest_of_otsu'),
    'background, half of otsu':with_proxies('background', **half),
    'background, then last layer':then_head,
    'background, ImageNet heat at 128 px, then last layer':partial(then_head, **at_128),
    'background, random place':with_proxies('background', rule='random_rest'), 'classes equally':arms['classes equally'],
    'upweighted errors':arms['upweighted errors'], 'last layer, afr':arms['last layer, afr'],
    'shortcut, 30 %':with_proxies('shortcut', area=.3)}
# what gains accuracy on birds (`gain.py`): is it less dependent on backgrounds?
which |= {o:arms[o] for o in ('one cycle','attentive_cutmix','vitamin')} | {'erasing':partial(random_erasing, fit=one_cycle, p=.25)}

def without_groups(learn):
    "What chooses a model where no groups are known, beside the worst class: the accuracy on swapped validation images"
    return dict(rest_swapped=swapped_accuracy(learn, 'rest', suspect=suspect(size=224), n=500),
                own_rest_swapped=swapped_accuracy(learn, 'rest', n=500),
                hot_swapped=swapped_accuracy(learn, 'hot', share=.2, n=500), **getattr(learn, 'before', {}))

@call_parse
def main(data:str, # Folder of the real data
         out:str='runs/waterbed', # Beds and runs are kept here
         bed:str='0.95', # Share of the training birds on their own place, or `natural`: photographs as they are
         seeds:str='11,12,13,14,15,16,17,18,19,20', # Each of another bed
         epochs:int=3, # Of each fit
         only:str='', # Only these arms, separated by semicolons
         fine_tuned:store_true=False, # As fastai's `fine_tune`: an epoch of the head, then the body at a hundredth of its rate
         accuracy_only:store_true=False, # Without the swapped accuracies, which take longer than a plain fit
         n_jobs:int=2, # Processes
         csv:str=str(Path(__file__).with_suffix('.csv')), # Where the table goes
):
    "Train with and without proxies, and test each group"
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)
    out = Path(out).resolve()
    raw = unpacked(data, out)
    mine = {k:which[k] for k in only.split(';')} if only else which
    name = f'{bed}, fine-tuned' if fine_tuned else bed
    measure = None if fine_tuned or accuracy_only else without_groups
    res = compare(partial(learner, raw, out, bed, fine_tuned=fine_tuned), mine, [int(o) for o in seeds.split(',')], epochs,
                  group_tests(), 1e-3, [*mine][0], measure=measure, folder=out/f'runs_{name}', n_jobs=n_jobs)
    print(f'{name}\n{res.table(diff=False).to_string()}', flush=True)
    keep_table(res.df.assign(bed=name).round(5), Path(csv), ['bed','arm','seed'])
