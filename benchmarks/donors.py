"""Whose pixels should a swap bring in? `python benchmarks/donors.py DATA` trains recipes with each donor strategy and writes `donors.csv`

The choice is made on seeds 0, 6 and 7; seeds 1 to 5, which nobody looked at for it, say what it is worth (`--held`).
Every run is kept in OUT: the same command goes on where it was stopped. DATA is as for `evidence.py`.
What a strategy costs in the loader is measured by `proxy_step.py`."""
import sys, warnings
from functools import partial
from pathlib import Path
import pandas as pd, torch
from fastcore.script import call_parse
from proxy_attention.experiment.arms import arms, with_proxies
from proxy_attention.experiment.compare import compare
from proxy_attention.masking.donors import donors
sys.path.insert(0, str(Path(__file__).parent))
from bed_data import make
from evidence import fc, flips, learner, part
from bench_tables import keep_table

tuned,held_out = (0,6,7),(1,2,3,4,5)

def unbalanced(path, seed):
    "The learner of `evidence.py`, with every fifth training image of the second class"
    learn = learner(path, seed)
    items,vocab = list(learn.dls.train_ds.items),learn.dls.vocab
    second = [i for i,o in enumerate(items) if o.parent.name==vocab[1]]
    keep = sorted(set(range(len(items)))-set(second)|set(second[::5]))
    for o in learn.dls.train_ds.tls: o.items = [o.items[k] for k in keep]
    learn.dls.train.n = len(keep)
    return learn

cases = {
    'two_colours':('shortcut', learner, flips), 'two_colours, one class rare':('shortcut', unbalanced, flips),
    'masktune':('shortcut', learner, flips), 'decoy':('late', lambda path,seed: learner(path, seed, fc), flips),
    'mnist_1k':('shortcut', lambda path,seed: learner(path, seed, bs=16), dict(plain=part('plain')))}

@call_parse
def main(data:str, # Folder of the real data
         out:str='runs/donors', # Beds and runs are kept here
         held:bool=False, # Report on the seeds that the choice was not made on
         only:str='', # Only these beds, separated by semicolons
         strategies:str=','.join(donors), # Only these
         n_jobs:int=2, # Processes
         csv:str=str(Path(__file__).with_suffix('.csv')), # Where the table goes
):
    "Train the recipes with every donor strategy"
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)
    seeds,tables = held_out if held else tuned,[]
    for case in only.split(';') if only else cases:
        recipe,make_net,tests = cases[case]
        bed = case.partition(',')[0]
        at = partial(make, bed, str(Path(data).resolve()), str(Path(out).resolve()/'beds'), n_train=4000, n_test=1000)
        which = {'no proxy':arms['no proxy']}|{o:with_proxies(recipe, donor=o) for o in strategies.split(',')}
        where = Path(out).resolve()/'runs'/f'{case.replace(", ","-").replace(" ","_")}-{"held" if held else "tuned"}'
        print(f'\n{case}, {recipe}', flush=True)
        res = compare(lambda seed: make_net(at(seed=seed), seed), which, seeds, 8, tests, 3e-3, 'previous', folder=where, n_jobs=n_jobs)
        print(res.table(diff=False).to_string(), flush=True)
        print(res, flush=True)
        tables.append(res.df.assign(bed=case, recipe=recipe, seeds='held out' if held else 'tuned on'))
    keep_table(pd.concat(tables).round(5), Path(csv), ['bed','seeds'])
