"""Is it slower than it was? `python benchmarks/before_after.py OLD` measures this checkout and an older one in turn

OLD is the folder of another checkout. Each turn is a process of its own, one of the old code, then one of the new;
figures are medians over the turns, each a ratio within its process. The table is printed, not kept."""
import json, os, statistics, subprocess, sys, tempfile, warnings
from pathlib import Path
import pandas as pd
from fastcore.script import call_parse

here = Path(__file__).parent

def cams():
    "GradCAM of resnet18 at 224², as a ratio of a forward pass without gradients, channels last"
    import timm, torch
    from attribution import clock
    from proxy_attention.all import GradCAM
    model = timm.create_model('resnet18').eval()
    lasting = timm.create_model('resnet18').eval().to(memory_format=torch.channels_last)
    def forward(x, y):
        with torch.no_grad(): lasting(x.contiguous(memory_format=torch.channels_last))
    def each(x, y):
        with GradCAM(model, target='label') as attr: attr(x, y)
    for bs in (1,16):
        ways = {'forward':forward, 'context open':GradCAM(model, target='label'), 'a context per batch':each}
        for o in clock(ways, torch.randn(bs,3,224,224), torch.arange(bs), 7, 'cpu')[1:]:
            yield f"GradCAM, batch {bs}, {o['way']}", o['ratio']

def steps():
    "A step as a ratio of an epoch, and an epoch that serves proxies as a ratio of one that does not, on photographs"
    import torch
    from fastai.vision.all import CrossEntropyLossFlat, ImageDataLoaders, Learner, Resize, set_seed
    from proxy_attention.all import ProxyAttention, digits_net
    from proxy_step import Clock, photos
    with tempfile.TemporaryDirectory() as d:
        path = photos(Path(d)/'photos', 400, 160)
        for losses in ('running','exact'):
            for kw in (dict(share=.2), dict(select='all')):
                set_seed(0)
                dls = ImageDataLoaders.from_folder(path, valid_pct=.1, item_tfms=Resize(96), bs=32, num_workers=0)
                cb = ProxyAttention(steps=[3,'p',1,'p',1,'p',2], losses=losses, fast=False, p=1., **kw)
                learn = Learner(dls, digits_net(n_out=2), loss_func=CrossEntropyLossFlat(), cbs=[Clock(), cb])
                with learn.no_bar(), learn.no_logging(): learn.fit(7, 1e-3)
                secs,what = learn.clock.secs,f"{losses} losses, {'all' if 'select' in kw else 'a fifth'}"
                plain = min(secs[1:3])
                yield f'step / epoch, {what}', statistics.median(cb.history.seconds)/plain
                yield f'epoch served / plain, {what}', min(secs[3:])/plain

@call_parse
def main(old:str, # Folder of an older checkout; with `--probe` of the one that is measured
         rounds:int=3, # Turns
         probe:bool=False, # Measure one checkout, and print JSON
):
    "Measure an older checkout and this one in turn"
    warnings.simplefilter('ignore')
    if probe:
        sys.path.insert(0, str(Path(old)/'benchmarks')) # of the checkout that is measured
        return print(json.dumps(dict([*cams(), *steps()])))
    found = dict(before=[], after=[])
    for r in range(rounds):
        for when,folder in (('before',Path(old).resolve()), ('after',here.parent)):
            env = os.environ|dict(PYTHONPATH=str(folder), PYTHONWARNINGS='ignore')
            res = subprocess.run([sys.executable, Path(__file__), folder, '--probe'], env=env, cwd=folder, capture_output=True, text=True)
            if res.returncode: raise SystemExit(f'{when}: {res.stderr[-2000:]}')
            found[when].append(json.loads(res.stdout.strip().splitlines()[-1]))
    df = pd.DataFrame({k:pd.DataFrame(o).median() for k,o in found.items()})
    print(df.assign(ratio=df.after/df.before).round(2).to_string())
