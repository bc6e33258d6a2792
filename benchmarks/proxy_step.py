"""What a proxy step costs, and what serving proxies costs: against an epoch, the plain loader, and the thesis' way of doing it.

`python benchmarks/proxy_step.py` writes `benchmarks/proxy_step.csv`. Ways that are compared take turns within one process;
figures are medians. The loader's ratio is one of processor time; the clock's stands beside it.
A whole fit (`fit`) is measured in processor time on one core, so images per second are those of one core.
Each recipe is fitted with its own chance `p`, which is in the table. The rows of a recipe stay when only others are measured
(`--only fit --names keep,vitamin`).
The images are crops of scikit-learn's two photographs, as JPEG files."""
import contextlib, ctypes, gc, io, resource, statistics, sys, tempfile, time, warnings, zipfile
from dataclasses import replace
from pathlib import Path
import numpy as np, pandas as pd, torch
from PIL import Image
from fastcore.script import call_parse
from sklearn.datasets import load_digits, load_sample_images
import pytorch_grad_cam
from fastai.vision.all import *
from fastai.callback.all import ShortEpochCallback
from proxy_attention.all import *
from proxy_attention.core import by_name
from proxy_attention.proxy.step import heat_of_items, masked_area
from proxy_attention.data.loaders import ImageStats, image_of, train_items, whole_dl
from proxy_attention.attribution.heatmap import HeatmapStore
from proxy_attention.masking.donors import Classes, donors
from proxy_attention.masking.masker import size_of
from proxy_attention.proxy.serving import Proxies, serving
from bench_tables import keep_table
warnings.simplefilter('ignore')

here = Path(__file__).parent
rows = []
def note(part, case, **measured):
    rows.append(dict(part=part, case=case, **measured))
    print(f"{part:8} {case:44} "+'  '.join(f'{k} {v:.4g}' for k,v in measured.items()), flush=True)

def photos(path, n, side):
    "`n` crops of two photographs, a folder each"
    rng = np.random.default_rng(0)
    for c,photo in enumerate(load_sample_images().images):
        (path/str(c)).mkdir(parents=True)
        for i in range(n//2):
            y,x = (int(rng.integers(0, o-side)) for o in photo.shape[:2])
            Image.fromarray(photo[y:y+side, x:x+side]).save(path/str(c)/f'{c}_{i}.jpg', quality=90)
    return path

def seconds(f):
    began = time.perf_counter(); f()
    return time.perf_counter()-began

def work(f):
    "Seconds of processor time, of this process and its workers: what is left when a busy machine blurs the clock"
    spent = lambda: sum(o.ru_utime+o.ru_stime for o in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))
    began = spent(); f()
    return spent()-began

class Clock(Callback):
    "Seconds of the training part of each epoch"
    order = -10
    def before_fit(self): self.secs = []
    def before_train(self): self.began = time.perf_counter()
    def after_train(self): self.secs.append(time.perf_counter()-self.began)

def learner(path, arch, side, bs=32, cbs=(), **kw):
    set_seed(0)
    dls = ImageDataLoaders.from_folder(path, valid_pct=.1, item_tfms=Resize(side), batch_tfms=Normalize.from_stats(*imagenet_stats),
        bs=bs, num_workers=0, **kw)
    return vision_learner(dls, arch, pretrained=False, metrics=accuracy, cbs=[Clock(), *cbs])

def quietly(learn, n):
    with learn.no_bar(), learn.no_logging(): learn.fit(n, 1e-3)
    return learn

def against_an_epoch(path, arch, side, rounds):
    "One step of 20 % of the items, as a share of an epoch"
    for losses in ('running','exact'):
        for fast in (None,False):
            learn = learner(path, arch, side, cbs=[ProxyAttention(start=1, losses=losses, share=.2, fast=fast, p=1.)])
            quietly(learn, rounds+1)
            epoch,step = statistics.median(learn.clock.secs), statistics.median(learn.proxy_attention.history.seconds)
            note('step', f"{losses} losses, {'half precision where it agrees' if fast is None else 'full precision'}",
                ratio=step/epoch, step_s=step, epoch_s=epoch, items=len(learn.dls.train_ds))

as_recipes = {'soft edge':dict(edge=.05),
    'rest, swap':dict(rule='rest', donor='same_class'), # vitamin
    'rest, swap_shared':dict(rule='rest', fill='swap_shared', donor='balanced'), # background
    'rest, erase':dict(rule='rest', fill='erase'), # keep
    'everything, look':dict(rule='everything', fill='look', donor='balanced'), # look
    'area, swap, mixed by heat':dict(labels='mix'),
    'box, swap, mixed by area':dict(rule='box', labels='mix_area'), # CutMix
    'box, move, mixed by heat':dict(rule='box', fill='move', labels='mix', alpha=5.), # snapmix
    'hottest_box, swap_theirs, mixed by area':dict(rule='hottest_box', fill='swap_theirs', labels='mix_area'), # saliencymix
    'top_cells, swap_theirs, mixed by area':dict(rule='top_cells', fill='swap_theirs', labels='mix_area')} # attentive_cutmix

def loader(path, side, rounds):
    "Throughput of the training loader: plain, with 20 % proxies, with p=0; then other donors, rules, fills and labels"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for workers in (0,1):
        set_seed(0)
        dls = ImageDataLoaders.from_folder(path, valid_pct=.1, item_tfms=Resize(side), batch_tfms=Normalize.from_stats(*imagenet_stats),
            bs=32, num_workers=workers)
        n = len(dls.train_ds)
        idxs = np.random.default_rng(0).choice(n, n//5, replace=False)
        store,stats = HeatmapStore(idxs, torch.rand(len(idxs),7,7)),ImageStats.of([Image.open(dls.train_ds.items[0])])
        classes = Classes([int(y) for _,y in dls.train_ds])
        def served(fill='swap', rule='area', edge=0., alpha=None, **kw):
            own = {} if alpha is None else dict(alpha=alpha)
            return Proxies(store, Masker(rule, fill, edge=edge, **own), classes=classes, data=stats, size=(side,side), **kw)
        main = {'plain':None, '20 % served':served(), 'p=0':served(p=0.)}
        fills_ = {f'20 % served, fill={k}':served(k) for k in ('zero','mean','blend','noise','swap_both','swap_theirs','move','erase')}
        fills_ |= {f'20 % served, {k}':served(**how) for k,how in as_recipes.items()}
        from_ = {f'20 % served, donor={k}':served(donor=k) for k in donors}
        for ways,turns in [(main,rounds)]+([({'plain':None}|fills_|from_, rounds//4)] if not workers else []):
            secs,works = ({k:[] for k in ways} for _ in range(2))
            def epoch(proxies):
                with serving(dls.train, proxies) if proxies else contextlib.nullcontext():
                    for b in dls.train: pass
            for _ in range(turns):
                for k,p in random.sample(list(ways.items()), len(ways)): # in another order each time
                    secs[k].append(seconds(lambda: works[k].append(work(lambda: epoch(p)))))
            med = lambda o: statistics.median(o[1:])
            for k in ways:
                note('loader', f'{k}, {workers} workers', ratio=med(works['plain'])/med(works[k]),
                    clock_ratio=med(secs['plain'])/med(secs[k]), images_s=n/med(secs[k]))
    torch.set_num_threads(threads)

class Turns(Callback):
    "After the first epoch every second one is served as it is; keeps processor seconds of training parts and of the step"
    order = ProxyAttention.order-1
    def before_fit(self): self.plain,self.proxied,self.looked,self.kept = [],[],0.,None
    def before_epoch(self):
        now = self.learn.proxy_attention.now
        if self.kept: now.proxies = self.kept if self.epoch%2 else None
        self.began = time.process_time()
    def after_train(self):
        served = self.learn.proxy_attention.now.proxies
        (self.plain if served is None else self.proxied).append(time.process_time()-self.began)
    def after_epoch(self): self.began = time.process_time()

class Looked(Callback):
    order = ProxyAttention.order+1
    def after_epoch(self):
        turns = self.learn.turns
        if not self.epoch: turns.looked,turns.kept = time.process_time()-turns.began,self.learn.proxy_attention.now.proxies

def images_of_an_epoch(dl):
    "How many images are trained on; what is left after the last whole batch is not"
    return len(dl)*dl.bs if dl.drop_last else dl.n

by_heat = ('snapmix','saliencymix','attentive_cutmix','keep','vitamin') # recipes for data where nothing is wrong

def whole_fit(path, arch, side, rounds, names=by_heat):
    "An epoch with proxies and a fifth of the step that renews heat, against a plain epoch of the same run, on one core"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for k in names:
        turns = Turns()
        learn = quietly(learner(path, arch, side, cbs=[turns, Looked(), by_name(k, recipes, 'recipe')(start=1, every=None)]), 2*rounds+2)
        plain,proxied = (statistics.median(o[-rounds:]) for o in (turns.plain,turns.proxied)) # the first epoch warms up
        n,cost,p = images_of_an_epoch(learn.dls.train),proxied+turns.looked/5,learn.proxy_attention.p
        note('fit', f'{k}, heat renewed every fifth epoch', ratio=cost/plain, images_s=n/cost, items=n, p=p)
        note('fit', f'{k}, heat for nothing', ratio=proxied/plain, images_s=n/proxied, items=n, p=p)
        note('fit', f'{k}, the plain epochs between', ratio=1., images_s=n/plain, items=n, p=p)
    torch.set_num_threads(threads)

def keep_part(part, file):
    "Write what was measured of a part, instead of what was; of whole fits those of other recipes stay"
    mine = [o for o in rows if o['part']==part]
    keep_table(pd.DataFrame(mine).round(5), file, ['part','case'] if part=='fit' else ['part'])

def against_the_thesis(learn, case, rounds, stats=imagenet_stats):
    "The thesis' step, from its description: GradCAM++ of pytorch-grad-cam, the hot pixels replaced, each image written as a JPEG"
    learn.add_cb(ProxyAttention(start=1, losses='running', share=.2, p=1.))
    quietly(learn, 2)
    pa,idxs,model = learn.proxy_attention,torch.tensor(sorted(learn.proxy_attention.log.item)),learn.model.eval()
    size = size_of(image_of(learn.dls.train_ds[0]))
    layer = find_layer(model, learn.dls.one_batch()[0]).module
    mean,std = (torch.tensor(o)[:,None,None] for o in stats)
    def thesis():
        with tempfile.TemporaryDirectory() as d, contextlib.redirect_stderr(io.StringIO()):
            cam,i = pytorch_grad_cam.GradCAMPlusPlus(model=model, target_layers=[layer]),0
            for xb,yb in whole_dl(learn.dls, train_items(learn.dls, idxs.tolist()), bs=32, num_workers=0):
                heat = torch.from_numpy(cam(input_tensor=xb.as_subclass(Tensor), targets=None))
                for img,h in zip(xb.as_subclass(Tensor)*std+mean, heat):
                    img = torch.where(h[None]>.5, img.max(), img)
                    Image.fromarray((img.clamp(0,1)*255).byte().permute(1,2,0).numpy()).save(f'{d}/{i}.jpg')
                    i += 1
    def ours(fast):
        heat,bad,agrees,_ = heat_of_items(learn, replace(pa.settings, fast=fast), idxs)
        masked_area(pa.masker, heat, size)
        Proxies(HeatmapStore(idxs[~bad], heat[~bad]), pa.masker, size=size)
        return agrees
    ways = {'as it comes':None, 'half precision':True, 'full precision':False}
    agrees,secs = ours(None),{k:[] for k in ('thesis',*ways)}
    with learn.no_bar(): # no bar on either side
        for r in range(rounds+1):
            for k in secs:
                s = seconds(thesis if k=='thesis' else lambda: ours(ways[k]))
                if r: secs[k].append(s)
    med = {k:statistics.median(o) for k,o in secs.items()}
    for k in ways:
        note('thesis',
            f"{case}: its step / ours, {k}{' (half)' if k=='as it comes' and agrees else ' (full)' if k=='as it comes' else ''}",
            ratio=med['thesis']/med[k], theirs_s=med['thesis'], ours_s=med[k], items=len(idxs))

def trained_on_cifar(shared, n):
    "A learner of the trained ResNet-20, and `n` training images of CIFAR-10 as files"
    sys.path.insert(0, str(here))
    from attribution import trained
    path = Path(tempfile.mkdtemp())
    with zipfile.ZipFile(shared/'cifar10_jpg.zip') as z:
        names = sorted(o for o in z.namelist() if '/train/' in f'/{o}' and o.endswith('.jpg'))
        for o in names[::len(names)//n][:n]: z.extract(o, path)
    set_seed(0)
    dls = ImageDataLoaders.from_folder(path, valid_pct=.1, batch_tfms=Normalize.from_stats(*imagenet_stats), bs=32, num_workers=0)
    return Learner(dls, trained(shared, 16)[0], cbs=Clock())

class Digits:
    "So many 32×32 images, in memory"
    def __init__(self, n):
        x = F.interpolate(torch.from_numpy(load_digits().images).float()[:,None]/16, (32,32))
        self.x,self.y,self.n = x.expand(-1,3,-1,-1).contiguous(),load_digits().target,n
    def __len__(self): return self.n
    def __getitem__(self, i): return self.x[i%len(self.x)], int(self.y[i%len(self.y)])

def memory():
    "Resident memory in MB: now, and the most since the mark was set back"
    status = lambda k: int(next(o for o in open('/proc/self/status') if o.startswith(k)).split()[1])/1e3
    return status('VmRSS'),status('VmHWM')

def as_work_grows(sizes):
    "Seconds and extra memory of a step, from few items to many"
    for n in sizes:
        marks = []
        class Mark(Callback):
            order = ProxyAttention.order-1
            def after_epoch(self):
                gc.collect()
                ctypes.CDLL(None).malloc_trim(0)
                Path('/proc/self/clear_refs').write_text('5')
                marks.append(memory()[0])
        ends = []
        class End(Callback):
            order = ProxyAttention.order+1
            def after_epoch(self): ends.append(memory()[1])
        set_seed(0)
        dls = DataLoaders(DataLoader(Digits(n), bs=64, shuffle=True), DataLoader(Digits(64), bs=64))
        learn = Learner(dls, digits_net(), loss_func=CrossEntropyLossFlat(),
            cbs=[Mark(), End(), ProxyAttention(start=1, share=.2), ShortEpochCallback(min(1., 1000/n))])
        quietly(learn, 3)
        pa = learn.proxy_attention
        note('growth', f'{n} items', step_s=pa.history.seconds.min(), step_us_an_item=pa.history.seconds.min()/n*1e6,
            extra_mb=ends[1]-marks[1], log_mb=pa.log.memory_usage(deep=True).sum()/1e6/len(pa.history),
            store_bytes_an_item=pa.store.nbytes/len(pa.store))

def fifty_steps(n=2000, steps=50):
    "Resident memory over many steps"
    seen = []
    class Mark(Callback):
        order = ProxyAttention.order+1
        def after_epoch(self):
            gc.collect()
            seen.append(memory()[0])
    set_seed(0)
    dls = DataLoaders(DataLoader(Digits(n), bs=64, shuffle=True), DataLoader(Digits(64), bs=64))
    quietly(Learner(dls, digits_net(), loss_func=CrossEntropyLossFlat(),
        cbs=[Mark(), ProxyAttention(start=1, share=.2), ShortEpochCallback(.1)]), steps+2)
    note('memory', f'growth over {steps} steps, after the first 5', ratio=seen[steps]/seen[5]-1, mb=seen[steps]-seen[5])

@call_parse
def main(
    rounds:int=7, # Turns that each way takes
    threads:int=2, # CPU threads
    arch:str='resnet18', # Network of the step and of the thesis' step
    side:int=128, # Its input
    images:int=1000, # Photographs for the step
    cifar:Path=here.parent.parent/'shared'/'data', # Folder of resnet20_cifar10.th and cifar10_jpg.zip; without them their case is left out
    only:str='', # One of step, loader, fit, thesis, growth, memory; all by default
    names:str=','.join(by_heat), # Recipes of `fit`
    out:Path=here # Where the table goes
):
    "Measure the proxy step and the serving of proxies"
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as d:
        small,large = photos(Path(d)/'small', images, side), photos(Path(d)/'large', 180, 224)
        parts = dict(
            step=lambda: against_an_epoch(small, arch, side, max(3, rounds//2)),
            loader=lambda: loader(large, 224, 17*rounds),
            fit=lambda: whole_fit(small, arch, side, max(2, rounds//2), names.split(',')),
            thesis=lambda: (
                [against_the_thesis(learner(small, arch, side), f'{arch} {side}²', rounds)]
                + ([against_the_thesis(trained_on_cifar(cifar, 2000), 'trained ResNet-20 32²', rounds)]
                   if (cifar/'resnet20_cifar10.th').exists() else [])),
            growth=lambda: as_work_grows([1_000,10_000,100_000]),
            memory=fifty_steps)
        for part,measure in parts.items():
            if only not in ('',part): continue
            measure()
            keep_part(part, out/'proxy_step.csv') # as soon as it is measured
