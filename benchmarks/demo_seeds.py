"The demo's arms on several seeds: `python benchmarks/demo_seeds.py` writes `benchmarks/demo_seeds.csv`"
import sys, warnings
from functools import partial
from pathlib import Path
import pandas as pd, torch
from fastcore.script import call_parse
from proxy_attention.data.digits import digits
from proxy_attention.experiment.arms import fit_plain, with_proxies
from proxy_attention.experiment.demo import train_arm

arms = {'without':fit_plain, 'shortcut()':with_proxies('shortcut'), 'ProxyAttention()':with_proxies('default'),
        'thesis()':with_proxies('thesis'), 'masktune()':with_proxies('masktune'), 'never a patch':fit_plain}

def one(seed, arm):
    path = digits(seed=seed)
    if arm=='never a patch': # the reference: the same images, no shortcut in training either
        for part in ('train','valid'): clean(path, part)
    learn,row = train_arm(path, arms[arm], seed)
    steps = getattr(learn, 'proxy_attention', None)
    made = 0 if steps is None else int(steps.history.made.sum())
    return dict(seed=seed, arm=arm, **row, proxy_steps=0 if steps is None else len(steps.history), proxies=made)

def clean(path, part):
    "Paint the patches of a part black"
    import numpy as np
    from PIL import Image
    from proxy_attention.data.digits import regions
    files = sorted((path/part).rglob('*.png'))
    for f,patch in zip(files, regions(path, files)['shortcut']):
        img = np.asarray(Image.open(f)).copy()
        img[patch] = 0
        Image.fromarray(img).save(f)

@call_parse
def main(seeds:int=5, # How many seeds
         only:str='', # Only these arms, separated by commas
         out:str=str(Path(__file__).with_suffix('.csv')), # Where the table goes
):
    "Train every arm on every seed"
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')
    rows = []
    for seed in range(seeds):
        for arm in arms:
            if only and arm not in only.split(','): continue
            rows.append(one(seed, arm))
            print({k:round(v, 3) if isinstance(v, float) else v for k,v in rows[-1].items()}, flush=True)
            pd.DataFrame(rows).round(4).to_csv(out, index=False)
    print(pd.DataFrame(rows).groupby('arm', sort=False)[['plain','aligned','flipped','seconds']].agg(['mean','std']).round(3).to_string())
