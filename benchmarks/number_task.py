"""Does the probe for numbers find a shortcut, and does `shortcut` cure it? `python benchmarks/number_task.py` writes `number_task.csv`

The number is the digit (0 to 9) in an image. In the bed `swatches`, the grey of a patch in a random corner gives it away; in the test
set `flipped` it shows another digit. In the bed `no_shortcut` there is no patch. Errors are mean absolute errors in digits; predicting
the mean has about 2.5. The probe sees the validation images, after the fit."""
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
import pandas as pd, torch
from fastai.vision.all import *
from proxy_attention.all import *
from fastcore.script import call_parse

def learner(path, seed, **kwargs):
    "A learner that predicts the digit as a number, in units of three digits"
    set_seed(seed)
    dls = DataBlock((ImageBlock,RegressionBlock), get_items=get_image_files, get_y=lambda f: (int(f.parent.name)-4.5)/3,
        splitter=GrandparentSplitter()).dataloaders(path, bs=32, num_workers=0)
    return Learner(dls, digits_net(1), loss_func=MSELossFlat(), **kwargs)

def error(learn, folder):
    "The mean absolute error in digits"
    with learn.no_bar(): pred,targ = learn.get_preds(dl=learn.dls.test_dl(get_image_files(folder), with_labels=True))
    return 3*float((pred.flatten()-targ.flatten()).abs().mean())

arms = {'shortcut in the data':(swatches, None), 'no shortcut in the data':(no_shortcut, None),
        'shortcut in the data, recipe shortcut':(swatches, ProxyAttention.shortcut)}

@call_parse
def main(seeds:int=6, # Number of seeds; the minimum of `moving` was chosen on seed 0
         epochs:int=6, # Number of epochs
         csv:str=str(Path(__file__).with_suffix('.csv'))): # Where the table goes
    "Train, probe and test each arm with each seed"
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)
    rows = []
    for seed in range(seeds):
        for name,(bed,recipe) in arms.items():
            with TemporaryDirectory() as tmp:
                path = bed(Path(tmp)/'bed', seed=seed)
                learn = learner(path, seed, cbs=recipe and recipe())
                with learn.no_bar(), learn.no_logging():
                    if recipe: learn.fit_proxy(epochs, 3e-3)
                    else: learn.fit_one_cycle(epochs, 3e-3)
                    found = probe(learn, n=200)
                errors = {k:error(learn, o) for k,o in test_sets(path).items()}
            t = found.told.loc['place']
            rows.append(dict(arm=name, seed=seed, r2=found.r2, **errors, small=found.small, moves=t.moves,
                             random_moves=t.random_moves, same_moves=t.same_moves, **found.carried.add_prefix('carried_'),
                             leans=';'.join(found.leans)))
            print({k:round(v, 2) if isinstance(v, float) else v for k,v in rows[-1].items()}, flush=True)
    pd.DataFrame(rows).round(3).to_csv(csv, index=False)
