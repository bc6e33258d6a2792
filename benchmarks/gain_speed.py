"""How many images per second does a fit with proxies train on, beside the plain one, alone and with others on the same machine?

`python benchmarks/gain_speed.py DATA OUT --processes 1,4,10 --seconds 4` says it for a bed of `gain.py`. As many processes as the most
that are asked for begin one fit each; in turn all but the first 1, 4, … of them rest. DATA and OUT are those of `gain.py`."""
import sys, time, warnings
from pathlib import Path
import torch, torch.multiprocessing as mp
from fastcore.script import call_parse
from fastai.callback.core import CancelFitException, Callback
from fastai.torch_core import set_seed
from proxy_attention.proxy.callback import ProxyAttention
sys.path.insert(0, str(Path(__file__).parent))
from gain_beds import Pictures, beds, learner, taken

class Turns(Callback):
    "Counts the images of each turn; who is not asked to work in it rests"
    order = -100
    def __init__(self, me, turns, seconds, ready):
        self.me,self.turns,self.seconds,self.ready = me,turns,seconds,ready
        self.counts,self.since = {},None
    def turn(self): return int((time.time()-self.since)//self.seconds)
    def before_train(self):
        if self.epoch!=1: return # by then proxies are served
        self.ready.wait()
        self.since = time.time()
    def before_batch(self):
        if self.since is None: return
        while (k := self.turn())<len(self.turns) and self.me>=self.turns[k]: time.sleep(.01)
        if k>=len(self.turns): raise CancelFitException()
    def after_batch(self):
        if self.since is None or not self.training: return
        torch.cuda.synchronize() if self.dls.device.type=='cuda' else None
        k = self.turn()
        self.counts[k] = self.counts.get(k, 0)+len(self.xb[0])

def fit(me, folder, bed, turns, seconds, ready, told):
    "One process: a plain fit and one with proxies"
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)
    for what in ('plain','proxies'):
        set_seed(me)
        learn = learner(bed, Pictures(folder), me)
        learn.unfreeze()
        if what=='proxies': learn.add_cb(ProxyAttention(select='all', start=1, every=None, fill='swap', p=.5))
        clock = Turns(me, turns, seconds, ready)
        with learn.no_bar(), learn.no_logging(): learn.fit(1000, 1e-4, cbs=clock)
        told.put((what, {turns[k]:n for k,n in clock.counts.items() if k<len(turns)}))

@call_parse
def main(data:str, # Folder of the real data
         out:str, # Pixels are kept here
         bed:str='cub', # One of `beds`
         processes:str='1,4,10', # So many at once, in turn
         seconds:float=4., # Of a turn
):
    "Say how many images per second are trained on"
    turns,folder = [int(o) for o in processes.split(',')],taken(data, out, beds[bed].source)
    ctx = mp.get_context('spawn')
    ready,told = ctx.Barrier(max(turns)),ctx.Queue()
    some = [ctx.Process(target=fit, args=(k, folder, beds[bed], turns, seconds, ready, told)) for k in range(max(turns))]
    for p in some: p.start()
    total = {o:dict.fromkeys(turns, 0) for o in ('plain','proxies')}
    for _ in range(2*len(some)):
        what,counts = told.get(timeout=300)
        for n,k in counts.items(): total[what][n] += k
    for p in some: p.join()
    print(f'{bed}, images per second: processes, plain, proxies, ratio', flush=True)
    for n in turns:
        plain,proxies = (total[o][n]/seconds for o in ('plain','proxies'))
        print(f'{n:3} {plain:9.0f} {proxies:9.0f} {proxies/max(plain, 1e-9):6.2f}', flush=True)
