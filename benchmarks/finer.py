"""Which finer heat places masks better? `python benchmarks/finer.py DATA --seeds 1,2,3,4,5` adds to `finer.csv`

Photographs of 128 pixels, on which the last layer of both networks has 4×4 cells: EfficientNet-Lite0, whose last two stages are trained,
and a small resnet from scratch. The region is known. A planted ring on photographs of insects says the class, which is drawn by lot, so
nothing else does: in a random corner (`ring`) or anywhere (`spot`). Untouched photographs of birds have a mask of the bird (`birds`).
The images are training images, as in a proxy step. `found` is the share of the region that a mask covers: the hottest 10 % of the image
for a ring (`shortcut` and `late` mask so much), the hottest 30 % for a bird (`background` keeps so much); by chance it is that share.
Every network has its own seed, bed and weights, and is kept in OUT: the same command goes on where it was stopped.
Seeds 1 to 5 were used for choosing; nobody looked at those from 11 on before."""
import sys, time, warnings, zipfile
from functools import partial
from pathlib import Path
import numpy as np, pandas as pd, timm, torch, torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from fastai.vision.all import ImageDataLoaders, Normalize, get_image_files, set_seed
from fastcore.script import call_parse
from proxy_attention.core import write_whole
from proxy_attention.attribution.cams import LayerCAM, RefineCAM
from proxy_attention.attribution.finer import Enlarged, Smoothed
from proxy_attention.attribution.heatmap import degenerate, normalize_heat
from proxy_attention.attribution.layers import find_layers
from proxy_attention.attribution.methods import heat_of
from proxy_attention.data.cues import on_places, planted, ring
from proxy_attention.data.loaders import whole_dl
from proxy_attention.masking.masker import Masker, stretch_mask
sys.path.insert(0, str(Path(__file__).parent))
from bench_tables import keep_table
from waterbed import birds, lite0, places, unpacked

def insects(data, out):
    "Photographs of ants and bees as files"
    out = Path(out)/'ants_bees'
    if not (out/'valid').is_dir():
        with zipfile.ZipFile(Path(data)/'ants_bees.zip') as z: z.extractall(out)
    return out

def with_cue(data, out, path, seed, cue, **kwargs):
    "Classes drawn by lot, so that nothing but the cue says the class"
    files = sorted(insects(data, out).rglob('*.jpg'))
    classes = np.random.default_rng(seed).permutation(len(files))%2
    return planted((files,classes), path, cue, seed=seed, size=128, n_train=280, n_test=40, **kwargs)
def spot(img, says, n, rng):
    "A coloured ring anywhere, not on the grid of a layer"
    side,mask = round(.2*img.width),np.zeros((img.height,img.width), bool)
    y,x = rng.integers(0, img.height-side, 2)
    part,its = ring(img.crop((x,y,x+side,y+side)), says, n, diameter=1., width=.2)
    mask[y:y+side,x:x+side] = its
    img = img.copy()
    img.paste(part, (x,y))
    return img,mask
def with_bird(data, out, path, seed, **kwargs):
    "Untouched photographs of land birds and water birds"
    raw = unpacked(data, out)
    some = birds(raw).drop(columns='part').sample(400, random_state=seed)
    return on_places(some, places(raw), path, seed=seed, size=128, natural=True, n_train=280, n_test=20)

beds = dict(ring=partial(with_cue, cue='ring', corner=None), spot=partial(with_cue, cue=spot), birds=with_bird)

def tail_of(net): return nn.Sequential(net.blocks[5:], net.conv_head, net.bn2, net.global_pool, net.classifier)
def trunk_of(net): return nn.Sequential(net.conv_stem, net.bn1, net.blocks[:5])
def small(): return timm.models.ResNet(timm.models.resnet.BasicBlock, (1,1,1,1), num_classes=2, channels=(16,32,64,128))

def fit(net, x, y, trunk, tail, epochs, lr, bs=32):
    "Train the tail on what the trunk makes of the images and of their mirror images: that is computed once"
    net.eval()
    with torch.no_grad(): x = torch.cat([trunk(o) for o in torch.cat([x,x.flip(3)]).split(64)])
    y,steps = torch.cat([y,y]),epochs*(2*len(y)//bs)
    opt = torch.optim.AdamW(tail.parameters(), lr)
    sched = torch.optim.lr_scheduler.OneCycleLR(opt, lr, total_steps=steps)
    tail.train()
    for _ in range(epochs):
        for at in torch.randperm(len(y)).split(bs)[:len(y)//bs]:
            opt.zero_grad()
            F.cross_entropy(tail(x[at]), y[at]).backward()
            opt.step()
            sched.step()
    net.eval()

def lite(x, y):
    "EfficientNet-Lite0: its first five stages stay as ImageNet has made them"
    net = lite0(2)
    fit(net, x, y, trunk_of(net), tail_of(net), 5, 2e-3)
    return net
def small_resnet(x, y):
    "A small resnet from scratch"
    net = small()
    fit(net, x, y, nn.Identity(), net, 8, 4e-3)
    return net
nets = dict(lite=(lite, partial(lite0, 2)), resnet=(small_resnet, small))
cases = [('ring','lite'),('birds','lite'),('ring','resnet'),('spot','lite'),('spot','resnet')]

def loaders(data, out, bed, seed):
    "The loaders of the bed of this seed: it is made, or the one that is there is taken"
    path = Path(out)/f'{bed}_{seed}'
    if not path.is_dir(): beds[bed](data, out, path, seed)
    return ImageDataLoaders.from_folder(path, train='train', valid='valid', bs=64, num_workers=0, shuffle=False,
                                        batch_tfms=[Normalize.from_stats([.5]*3, [.5]*3)])

def right(net, dls, part):
    "Accuracy on a part of the bed"
    dl = dls.test_dl(get_image_files(dls.path/part), with_labels=True)
    with torch.no_grad(): return float(torch.cat([net(x.as_subclass(Tensor)).argmax(1)==y for x,y in dl]).float().mean())

def network(dls, out, bed, kind, seed):
    "The network of this bed and seed: trained once, and kept"
    file,(train,empty) = Path(out)/'nets'/f'{bed}_{kind}_{seed}.pt',nets[kind]
    if file.exists():
        (net := empty()).load_state_dict(torch.load(file, weights_only=True))
        return net.eval()
    set_seed(seed)
    x,y = (torch.cat(o).as_subclass(Tensor) for o in zip(*dls.train.new(shuffle=False, drop_last=False)))
    net = train(x, y)
    file.parent.mkdir(exist_ok=True)
    write_whole(file, lambda f: torch.save(net.state_dict(), f))
    print(bed, kind, seed, {k:round(right(net, dls, k), 3) for k in ('train','valid','flipped') if (dls.path/k).is_dir()}, flush=True)
    return net

def regions(files, root):
    "(n,h,w) bool: the box of the cue, or the bird"
    if not (root/'about.csv').exists():
        return torch.stack([torch.from_numpy(np.array(Image.open(root/'masks'/f.relative_to(root)))>0) for f in files])
    about = pd.read_csv(root/'about.csv', index_col='file')
    res = torch.zeros(len(files),128,128, dtype=torch.bool)
    for f,o in zip(files, res):
        y,x,h,w = about.loc[f.relative_to(root).as_posix(), ['top','left','height','width']].astype(int)
        o[y:y+h,x:x+w] = True
    return res

def ways(net, few):
    "Name → what makes heat"
    layers = find_layers(net, torch.zeros(1,3,128,128))
    def cam(how=LayerCAM, **kw): return how(net, target='margin', **kw)
    res = {'plain':cam(), 'earlier layer':cam(layer=layers[-2]), 'product of 2':cam(RefineCAM), 'product of 3':cam(RefineCAM, grids=3),
           'mean of 2':cam(RefineCAM, fuse='mean'), 'product of 2, GradCAM++':cam(RefineCAM, of='GradCAMPlusPlus')}
    smoothed = partial(Smoothed, net, target='margin')
    larger = partial(Enlarged, net, target='margin')
    res |= {'flip':smoothed(views='flip'), 'shift':smoothed(views='shift'), '224 pixels':larger(size=224),
            'flip, product of 2':smoothed(of=RefineCAM, views='flip'), '224 pixels, product of 2':larger(of=RefineCAM, size=224)}
    return {k:v for k,v in res.items() if not few or k in few}

def found(heat, region, area):
    "Share of the region of each image that the hottest `area` of the image covers, and how much of the image that is"
    hot = stretch_mask(Masker('area', 'zero', area=area, max_area=1.).drawn(normalize_heat(heat)), region.shape[1:])
    return (hot&region).float().sum((1,2))/region.float().sum((1,2)), hot.float().mean((1,2))

def had(csv):
    "Bed, network and seed of what has been measured"
    return set(pd.read_csv(csv)[['bed','net','seed']].itertuples(index=False, name=None)) if csv.exists() else set()

@call_parse
def main(data:str, # Folder of the real data
         out:str='runs/finer', # Beds and networks are kept here
         seeds:str='1,2,3,4,5', # Each with its own beds and networks
         few:str='', # Only these ways, separated by semicolons; empty: all
         n:int=32, # Training images per network
         csv:str=str(Path(__file__).with_suffix('.csv')), # Where the table goes
):
    "Measure which heat places masks better"
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)
    for seed in map(int, seeds.split(',')):
        for bed,kind in cases:
            dls = loaders(data, out, bed, seed)
            net,rows = network(dls, out, bed, kind, seed),[]
            if (bed,kind,seed) in had(Path(csv)): continue
            files = dls.train.items[::max(1, len(dls.train.items)//n)][:n]
            region,area = regions(files, dls.path.resolve()),.3 if bed=='birds' else .1
            for way,attr in ways(net, [o for o in few.split(';') if o]).items():
                size,began = attr.view((128,128)) if hasattr(attr, 'view') else None, time.process_time()
                heat = heat_of(attr, whole_dl(dls, files, size=size))[0]
                seconds,(share,covered) = time.process_time()-began,found(heat, region, area)
                rows.append(dict(bed=bed, net=kind, seed=seed, way=way, found=float(share.mean()), covered=float(covered.mean()),
                                 region=float(region.float().mean()), cells=heat.shape[1], flat=int(degenerate(heat).sum()), seconds=seconds))
            keep_table(pd.DataFrame(rows).round(4), Path(csv), ['bed','net','seed','way'])
            print(pd.DataFrame(rows)[['way','found','covered','cells','flat','seconds']].round(3).to_string(), flush=True)
