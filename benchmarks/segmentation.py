"""Segmentation: which layer's heat finds the context, what a heatmap costs, and whether the probe tells a leaning class from another

    python benchmarks/segmentation.py probe --seeds 5    # trains a U-Net per seed on `pixel_bed`, with and without the cue
    python benchmarks/segmentation.py heat --seeds 3     # of the same networks: the share of the heat on the cue, per layer and method
    python benchmarks/segmentation.py cost               # fastai's `unet_learner(resnet18)`: a heatmap as a multiple of a forward pass
"""
import argparse, time, warnings
from pathlib import Path
import numpy as np, pandas as pd, torch
with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    from fastai.vision.all import *
    from proxy_attention.all import *
from proxy_attention.attribution.heatmap import resize_heat
from proxy_attention.attribution.layers import find_layers
from proxy_attention.attribution.methods import as_attribution
from proxy_attention.data.pixels import PixelNet, patch_of, pixel_bed, pixel_classes, pixel_learner

def trained(folder, seed, n, epochs, net=None):
    "Train the network of a seed, or read it"
    bed = pixel_bed(folder/'bed', n)
    learn,file = pixel_learner(bed, seed),folder/f'net{seed}_{epochs}.pth'
    if file.exists(): learn.model.load_state_dict(torch.load(file))
    else:
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, 1e-2)
        torch.save(learn.model.state_dict(), file)
    return learn

def of_probe(a):
    "One row per seed and class"
    rows = []
    for seed in range(a.seeds):
        learn = trained(a.folder, seed, a.n, a.epochs)
        found = probe(learn, n=a.images, seed=seed)
        for c,kind in found.table.index:
            o = found[c].loc[kind]
            rows.append(dict(seed=seed, label=c, kind=kind, images=int(o.images), iou=o.iou, masked=o.masked, changes=o.changes, control=o.control,
                             carried=o.carried, to=o.to, leans=kind in found.leans.get(c, [])))
        print(seed, found.leans, flush=True)
        pd.DataFrame(rows).round(4).to_csv(a.csv or 'benchmarks/segmentation_probe.csv', index=False)

layers = ['first','down.0','down.1','down.2','mid','up.0','up.1','up.2']
methods = ['GradCAM','LayerCAM','HiResCAM']

def heat_of_class(attr, xb, yb, classes):
    "Return heatmaps of the class of each image"
    heat = torch.zeros(len(xb), *xb.shape[-2:])
    for c in classes.unique().tolist():
        at = classes==c
        heat[at] = resize_heat(attr(int(c))(xb[at], yb[at]), xb.shape[-2:]).clamp(min=0)
    return heat

def of_heat(a):
    "One row per seed, layer and method: the share of the heat on the patch, on the object, and on the patch without the object"
    rows = []
    for seed in range(a.seeds):
        learn = trained(a.folder, seed, a.n, a.epochs)
        dl = learn.dls.valid
        xb,yb = (torch.cat([b[i].as_subclass(Tensor) for b in dl])[:a.images] for i in (0,1))
        patch = torch.zeros_like(yb, dtype=torch.bool)
        for m,f in zip(patch, dl.dataset.items):
            top,left,side = patch_of(f)
            m[top:top+side,left:left+side] = True
        cue = torch.where((yb==1).flatten(1).any(1), 1, 2)
        asked = [(k,m) for k in layers for m in methods]+[(None,'Occlusion'),(None,'Saliency')]
        for layer,how in asked:
            few = 16 if how=='Occlusion' else len(xb)
            for who,cls in dict(cue=cue, tree=torch.full_like(cue, 3)).items():
                heat = heat_of_class(lambda c: as_attribution(how)(learn.model, layer=layer, target=Region(c, 'label')), xb[:few], yb[:few], cls[:few])
                own,on = yb[:few]==cls[:few,None,None],patch[:few]
                rest = heat*~own
                mean = lambda o: float(o.nanmean())
                part = lambda h,m: (h*m).sum((1,2))/h.sum((1,2))
                rows.append(dict(seed=seed, layer=layer or 'input', method=how, label=who, patch=mean(part(heat, on)), object=mean(part(heat, own)),
                                 beside=mean(part(rest, on)), flat=mean((on&~own).float().mean((1,2))/(~own).float().mean((1,2)))))
        pd.DataFrame(rows).round(4).to_csv(a.csv or 'benchmarks/segmentation_heat.csv', index=False)
        print(pd.DataFrame(rows).groupby(['layer','method','label'], sort=False)[['patch','object','beside','flat']].mean().unstack().round(2).to_string(), flush=True)

def of_cost(a):
    "A heatmap as a multiple of a forward pass without gradients, by processor time: the median over rounds"
    net = DynamicUnet(create_body(resnet18(weights=None), pretrained=False), 4, (a.side,a.side)).eval()
    xb,rows = torch.randn(2, 3, a.side, a.side),[]
    layers = find_layers(net, xb)
    asked = {'forward':None, **{f'{o.name} {o.grid[0]}×{o.grid[1]}':LayerCAM(net, layer=o, target=Region(1)) for o in layers}}
    def plain():
        with torch.no_grad(): net(xb.contiguous(memory_format=torch.channels_last))
    for attr in asked.values(): (attr or (lambda x: plain()))(xb)
    took = {k:[] for k in asked}
    for _ in range(a.rounds):
        for k,attr in asked.items():
            began = time.process_time()
            plain() if attr is None else attr(xb)
            took[k].append(time.process_time()-began)
    base = np.median(took['forward'])
    rows = [dict(layer=k, side=a.side, ratio=np.median(v)/base, seconds=np.median(v)) for k,v in took.items()]
    pd.DataFrame(rows).round(3).to_csv(a.csv or 'benchmarks/segmentation_cost.csv', index=False)
    print(pd.DataFrame(rows).round(3).to_string())

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('what', choices=['probe','heat','cost'])
    for k,v in dict(seeds=5, n=440, epochs=9, images=100, side=128, rounds=5).items(): p.add_argument(f'--{k}', type=int, default=v)
    p.add_argument('--folder', type=Path, default=Path('/tmp/proxy_attention_segmentation'))
    p.add_argument('--csv', default=None)
    a = p.parse_args()
    a.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    dict(probe=of_probe, heat=of_heat, cost=of_cost)[a.what](a)
