"""Which heat finds what a transformer looks at? `python benchmarks/vit_heat.py DATA` writes `vit_heat.csv`

Small vision transformers are trained from scratch on photographs of CIFAR-10. Each holds one thing at a random place whose colour is the
class: a square (`cue`), or a handwritten digit (`digit`) beside a white one that says nothing. The prediction is read from a class token
(`token`) or from the mean of the patches (`avg`). Networks of an even seed are for choosing (`choose`), the others for confirming
(`confirm`). Per network and attribution, on the same test images that are predicted correctly, for the predicted class:

- `hit`: is the hottest cell on the thing? `found`: share of the thing in the hottest 10 % of the image.
- `flips`: how often the prediction changes if the hottest 10 % are replaced by the same place of another image; it needs no place.
- `deletion`: area under the probability curve as the hottest pixels become grey first; lower is better.
- `asked`: on images that hold two things of different classes, each class in turn is explained: is its own thing the hotter one?
- `forwards`: processor time in plain forward passes of the same images."""
import sys, time, warnings
from functools import partial
from pathlib import Path
import numpy as np, pandas as pd, timm, torch, torch.nn.functional as F
from fastcore.script import call_parse
from torch import nn
from proxy_attention.attribution.cams import CAM, LayerCAM
from proxy_attention.attribution.heatmap import normalize_heat, resize_heat
from proxy_attention.attribution.methods import as_attribution
from proxy_attention.attribution.targets import Margin
from proxy_attention.attribution.transformers import AttentionMaps, _Transformer
from proxy_attention.interpret.metrics import deletion, pointing_game, random_heat
from proxy_attention.masking.rules import area_budget
sys.path.insert(0, str(Path(__file__).parent))
from bed_data import cifar, mnist
from bench_tables import keep_table

side,grey = 32,.5
colours = torch.tensor([[1,.1,.1],[.1,1,.1],[.2,.2,1],[1,1,.1]])

def photographs(data, cache):
    "Photographs as (n,3,32,32) in [0,1], from a file that is made once"
    if not cache.exists():
        cache.parent.mkdir(parents=True, exist_ok=True)
        np.save(cache, cifar(data, n=800)[0])
    return torch.from_numpy(np.load(cache)).permute(0,3,1,2).float()/255

def batch(task, n, photos, digits, g, before=None):
    "n images with one thing each, its class, and (n,32,32) bool where it is; `before` are images and classes that get another one"
    x = photos[torch.randint(len(photos), (n,), generator=g)].clone() if before is None else before[0].clone()
    size = dict(cue=8, digit=14)[task]
    at,place = torch.randint(side-size+1, (n,2), generator=g), torch.zeros(n, side, side, dtype=torch.bool)
    y,thing = torch.randint(len(colours), (n,), generator=g),torch.ones(n, size, size)
    if before is not None: y = (before[1]+1+torch.randint(len(colours)-1, (n,), generator=g))%len(colours)
    if task=='digit':
        thing,other = (digits[torch.randint(len(digits), (n,), generator=g)] for _ in range(2))
        for k,(r,c) in enumerate(torch.randint(side-size+1, (n,2), generator=g).tolist()*(before is None)): # white, whatever the class
            part = x[k][:,r:r+size,c:c+size]
            part += (1-part)*other[k]
    for k,(r,c) in enumerate(at.tolist()):
        where = slice(r, r+size),slice(c, c+size)
        ink = thing[k]
        place[k][where] = ink>.3
        x[k][:,*where] = x[k][:,*where]*(1-ink) + colours[y[k]][:,None,None]*ink
    return x,y,place

def network(task, head, seed, source, cache, steps):
    "A trained network, from a file if it was trained before"
    torch.manual_seed(seed)
    net = timm.models.VisionTransformer(img_size=side, patch_size=4, embed_dim=48, depth=6, num_heads=3, mlp_ratio=2.,
        num_classes=len(colours), global_pool=head, class_token=head=='token', fc_norm=False)
    file = cache/f'{task}_{head}_{seed}_{steps}.pt'
    if file.exists():
        net.load_state_dict(torch.load(file, weights_only=True))
        return net.eval()
    opt,g = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=.05),torch.Generator().manual_seed(seed)
    sched = torch.optim.lr_scheduler.OneCycleLR(opt, 2e-3, total_steps=steps, pct_start=.2)
    for _ in range(steps):
        x,y,_ = batch(task, 64, *source, g)
        loss = F.cross_entropy(net(x-grey), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        sched.step()
    torch.save(net.state_dict(), file)
    return net.eval()

class GradRollout(_Transformer):
    "Attention weighted by its positive gradient, followed back through all blocks (Chefer et al. 2021, arXiv 2103.15679)"
    def explain(self, xb, yb, target):
        with torch.enable_grad(), self.attention(xb) as seen:
            score = target(self.scores(xb.clone().requires_grad_()), yb).sum()
            grads = torch.autograd.grad(score, seen.maps, allow_unused=True)
        eye = torch.eye(self.tokens, device=xb.device)
        roll,rest = eye.expand(len(xb), -1, -1),0
        for a,g in zip(seen.maps, grads):
            if g is not None: roll = roll + (a*g).relu().mean(1).detach()@roll
        at = 0 if self.tokens>self.grid[0]*self.grid[1] else slice(None)
        rows = roll[:,at].reshape(len(xb), -1, self.tokens).mean(1) - (0 if at==0 else 1/self.tokens)
        return self.on_grid(rows)

class Both(CAM, base=True):
    "Gradient times activation with either sign"
    def heat(self, act, grad): return (grad*act).sum(1).abs()
class GradNorm(CAM, base=True):
    "Size of the gradient at each place"
    def heat(self, act, grad): return grad.norm(dim=1)

def ways(net):
    "Name → attribution"
    names = 'LayerCAM GradCAM HiResCAM EigenGradCAM AttentionRollout LeGrad'.split()
    res = {o:as_attribution(o) for o in names} | dict(GradRollout=GradRollout, Both=Both, GradNorm=GradNorm)
    res |= {f'{o.__name__} of block {at}':partial(o, layer=f'blocks.{at}') for o,at in ((LayerCAM,3),(Both,1))} # further back
    return res | dict(random=lambda net,target: lambda xb: random_heat(xb, rng=torch.Generator().manual_seed(0)))

@torch.no_grad()
def measured(net, x, place, heat):
    "The four numbers of these heatmaps"
    pred = net(x).argmax(1)
    other = x.roll(1, 0)
    hot = area_budget(normalize_heat(resize_heat(heat, (side,side))), .1)
    swapped = net(torch.where(hot[:,None], other, x)).argmax(1)
    return dict(hit=pointing_game(heat, place).nan_to_num(0).mean(), found=((hot&place).sum((1,2))/place.sum((1,2))).mean(),
        flips=(swapped!=pred).float().mean(), deletion=deletion(net, x, heat, pred, steps=8, fill='zero').nan_to_num(1).mean())

def asked(net, way, x, classes, places):
    "How often the thing of the class that is explained is hotter than the other"
    right = []
    for own in (0,1):
        heat = resize_heat(way(net, target=Margin(classes[own]))(x), (side,side))
        inside = [torch.where(p, heat, 0.).sum((1,2))/p.sum((1,2)) for p in places]
        right.append((inside[own]>inside[1-own]).float()+(inside[own]==inside[1-own]).float()/2)
    return torch.cat(right).mean()

@call_parse
def main(data:str, # Folder of the real data
         out:str='runs/vits', # Networks are kept here
         seeds:int=10, # Number of networks per task and head; the first half is for choosing
         n:int=96, # Number of test images
         steps:int=200, # Steps of training
         tasks:str='cue,digit', heads:str='token,avg',
         csv:str=str(Path(__file__).with_suffix('.csv')), # Where the table goes
):
    "Train the networks and measure"
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)
    out = Path(out).resolve()
    photos = photographs(data, out/'photographs.npy')
    imgs = torch.from_numpy(np.array(mnist(data)[0]))
    digits = F.interpolate(imgs[:,None].float()/255, (14,14), mode='area')[:,0]
    half = len(photos)//2
    order = torch.randperm(len(photos), generator=torch.Generator().manual_seed(0))
    train,test = (photos[order[:half]],digits[:7000]),(photos[order[half:]],digits[7000:])
    for seed in range(seeds):
        for task in tasks.split(','):
            for head in heads.split(','):
                t = time.process_time()
                net,rows = network(task, head, seed, train, out, steps),[]
                trained = time.process_time()-t
                x,y,place = batch(task, n, *test, torch.Generator().manual_seed(1000+seed))
                two,both,last = batch(task, n, *test, torch.Generator().manual_seed(2000+seed), (x,y))
                first = place&~last # the second lies on top
                seen = (first.sum((1,2))>.5*place.sum((1,2)))
                pair = two[seen]-grey, (y[seen],both[seen]), (first[seen],last[seen])
                x = x-grey
                with torch.no_grad():
                    right = net(x).argmax(1)==y
                    accuracy = (net(x).argmax(1)==y).float().mean().item()
                    t = time.process_time()
                    for _ in range(3): net(x)
                    once = (time.process_time()-t)/3
                print(task, head, seed, f'{accuracy:.2f}', f'{trained:.0f} s', f'forward {once:.2f} s', flush=True)
                x,place = x[right],place[right]
                for k,way in ways(net).items():
                    attr = way(net, target='margin')
                    attr(x[:2])
                    t = time.process_time()
                    heat = attr(x)
                    cost = (time.process_time()-t)/once*n/len(x)
                    numbers = {a:float(b) for a,b in measured(net, x, place, heat).items()}
                    rows.append(dict(task=task, head=head, seed=seed, half='confirm' if seed%2 else 'choose', way=k,
                                     accuracy=accuracy, **numbers, asked=float(asked(net, way, *pair)), forwards=cost))
                keep_table(pd.DataFrame(rows).round(4), Path(csv), ['task','head','seed','way'])
