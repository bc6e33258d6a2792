"""Does it hold with seeds that nobody has looked at? `python benchmarks/confirmed.py DATA` writes `confirmed.csv`

The beds of `evidence.py`: `fit_proxy` without any knob (the recipe `rehearsed`) beside the fit without proxies, and where it failed
before also the recipe `probed`. Seeds 11 to 20; for choosing, seeds 0 to 5 were used, and for `rehearsed` photographs alone.
Every run is kept in OUT: the same command goes on where it was stopped."""
import sys, warnings
from functools import partial
from pathlib import Path
import torch
from fastcore.script import call_parse
from proxy_attention.experiment.arms import arms
from proxy_attention.experiment.compare import compare
sys.path.insert(0, str(Path(__file__).parent))
from bed_data import make
from bench_tables import keep_table
from evidence import digits_net, fc, flips, learner

two,three = ('no proxy','rehearsed'),('no proxy','probed','rehearsed')
beds = dict( # name → network, arms, batch size
    decoy=(fc, three, 64), dominoes_100=(digits_net, three, 64), dominoes_95=(digits_net, three, 64),
    two_colours=(digits_net, two, 64), random_corner=(digits_net, two, 64), masktune=(digits_net, two, 64),
    mnist_1k=(digits_net, two, 16), cifar=(digits_net, two, 64))

def made(data, out, bed, seed):
    net,_,bs = beds[bed]
    return learner(make(bed, data, out/'beds', seed=seed, n_train=2000 if bed=='cifar' else 4000, n_test=1000), seed, net, bs)

@call_parse
def main(data:str, # Folder of the real data
         out:str='runs/confirmed', # Beds and runs are kept here
         only:str='', # Only these beds, separated by commas
         seeds:str='11,12,13,14,15,16,17,18,19,20', # Of bed, weights and order
         n_jobs:int=2, # Processes
         csv:str=str(Path(__file__).with_suffix('.csv')), # Where the table goes
):
    "Train with and without proxies on every bed"
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)
    data,out = str(Path(data).resolve()),Path(out).resolve()
    for bed in only.split(',') if only else beds:
        tests = {'plain':flips['plain']} if bed in ('mnist_1k','cifar') else flips
        res = compare(partial(made, data, out, bed), {o:arms[o] for o in beds[bed][1]}, [int(o) for o in seeds.split(',')], 8,
                      tests, 3e-3, 'no proxy', folder=out/'runs'/bed, n_jobs=n_jobs)
        print(f'{bed}\n{res.table(diff=False).to_string()}', flush=True)
        keep_table(res.df.assign(bed=bed).round(5), Path(csv), ['bed','arm','seed'])
