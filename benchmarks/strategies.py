"""Does `heat_clusters` find a strategy that a network has for some images of one class? `python benchmarks/strategies.py DATA`

Networks by number, for digits (MNIST) and photographs (CIFAR-10) of three classes. In every second four a mark (a coloured square) lies
in a corner of 15, 20 or 30 % of the images of one class, and in no other image; in the others there is no mark. Parameters were chosen
on networks up to number 23; the later ones are reported. `strategies.csv` has one row per network and predicted class: `relies` is the
fraction of the images of other classes that the mark turns into the marked class, `marked` the number of marked images, `clusters` how
many were found beside the main one, `stands_out` how many stand out, and of the one with most of the marked images (or else the first):
its images, the share of the marked ones in it (`recall`), the share of it that is marked (`purity`), its place in words, the accuracy
in it and among the others, and how many predictions follow a swap of the hottest part."""
import sys, zipfile
from pathlib import Path
import numpy as np, pandas as pd, torch
from PIL import Image
from fastcore.script import call_parse
from fastai.data.transforms import get_image_files
from proxy_attention.data.beds import read_idx
from proxy_attention.data.digits import bed_learner, digits_net, palette, plant, corner_box, write_bed
from proxy_attention.attribution.clusters import heat_clusters
from proxy_attention.interpret.probe import probe
sys.path.insert(0, str(Path(__file__).parent))
from bench_tables import keep_table

side,mark = 32,8 # pixels of the images and of the mark
animals = range(2,8) # classes of CIFAR-10

def what(number):
    "What a network with this number is trained on"
    rng = np.random.default_rng(number)
    data,cue = ('mnist','cifar')[number//2%2], number//4%2==0
    share,corner = [.15,.2,.3][number//8%3] if cue else 0.,int(rng.integers(4))
    classes = sorted(rng.permutation(range(10) if data=='mnist' else animals)[:3].tolist())
    return dict(number=number, data=data, share=share, corner=corner, classes=classes, marked=int(rng.integers(3)), seed=number)

def mnist(folder, rng):
    "Digits that are hard to read: faint, moved by up to four pixels, in noise"
    imgs = np.pad(read_idx(folder/'mnist_10k_images_idx3.gz'), ((0,0),(2,2),(2,2)))
    moved = np.stack([np.roll(o, rng.integers(-4,5,2), (0,1)) for o in imgs])
    imgs = (moved*.25+80+rng.normal(0, 40, imgs.shape)).clip(0,255).astype(np.uint8)
    return np.repeat(imgs[...,None], 3, -1),read_idx(folder/'mnist_10k_labels_idx1.gz').astype(int)

def cifar(folder, classes, each):
    "Photographs of some classes, the first of the training images"
    with zipfile.ZipFile(folder/'cifar10_jpg.zip') as z:
        names = sorted(o for o in z.namelist() if o.endswith('.jpg'))
        kinds = sorted({Path(o).parent.name for o in names})
        mine = [(o,c) for c in classes for o in [n for n in names if Path(n).parent.name==kinds[c]][:each]]
        return np.stack([np.array(Image.open(z.open(o)).convert('RGB')) for o,_ in mine]),np.array([c for _,c in mine])

def bed(o, folder, path, each=700, valid=.3):
    "Write the images of a network: `train` and `valid`, marked alike, and `odd`: images of the other classes with the mark"
    rng = np.random.default_rng(100+o['number'])
    imgs,labels = mnist(folder, rng) if o['data']=='mnist' else cifar(folder, o['classes'], each)
    box = corner_box(o['corner'], (side,side), mark)
    def rows():
        for k,c in enumerate(o['classes']):
            at = rng.permutation(np.flatnonzero(labels==c))[:each]
            for n,i in enumerate(at.tolist()):
                part,hit = 'valid' if n<valid*len(at) else 'train', k==o['marked'] and rng.random()<o['share']
                img = plant(imgs[i], palette[0], box) if hit else imgs[i]
                yield part, f'c{c}', f'{i:05}', img, f'c{c}' if hit else None, False, box if hit else None
                if part=='valid' and k!=o['marked'] and o['share']:
                    yield 'odd', f'c{c}', f'{i:05}', plant(imgs[i], palette[0], box), f"c{o['classes'][o['marked']]}", True, box
    return write_bed(path, rows())

def trained(o, folder, out):
    "The heat of a network on its validation images, and what is known of it; from a file if it is there"
    f = out/f"{o['number']:03}.npz"
    if f.exists(): return dict(np.load(f))
    path = out/f"bed_{o['number']:03}"
    if not path.exists(): bed(o, folder, path)
    learn = bed_learner(path, digits_net, seed=o['seed'], bs=32)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(4 if o['data']=='mnist' else 10, 4e-3)
    about = pd.read_csv(path/'about.csv', index_col='file')
    files = learn.dls.valid_ds.items
    with learn.no_bar(): p = probe(learn, n=len(files), areas=(.05,.1))
    def preds_of(fs):
        with learn.no_bar(): return learn.get_preds(dl=learn.dls.test_dl(fs))[0].argmax(1).numpy()
    odd = np.nan
    if o['share']:
        fs = get_image_files(path/'odd').sorted()
        plain = [path/'valid'/f.relative_to(path/'odd') for f in fs]
        odd = float((preds_of(fs)==o['marked']).mean()-(preds_of(plain)==o['marked']).mean())
    follows = np.full(len(files), np.nan)
    if p.followed: follows[~p.bad.numpy()] = p.followed[p.small].numpy()
    res = dict(heat=p.heat.numpy().astype(np.float32), preds=p.preds.numpy(), targs=p.targs.numpy(), follows=follows, odd=odd,
        marked=np.array([pd.notna(about.cue[o.relative_to(path).as_posix()]) for o in files]), accuracy=p.accuracy)
    np.savez_compressed(f, **res)
    print(o, f"accuracy {p.accuracy:.3f}, {odd:.0%} more of the others become the marked class", p.told.carried.to_dict(), flush=True)
    return res

def scored(o, got):
    "One row per predicted class"
    heat,preds,targs,marked = torch.from_numpy(got['heat']),got['preds'],got['targs'],got['marked']
    f = heat_clusters(heat, preds, [f'c{c}' for c in o['classes']], preds==targs, got['follows'])
    for name,same in f.df.groupby('class', sort=False):
        mine = np.isin(f.of, same.index)
        hit = {i:int(marked[f.of==i].sum()) for i in same.index[1:]}
        row = {k:o[k] for k in ('number','data','share')} | dict(relies=float(got['odd']), accuracy=float(got['accuracy']), name=name,
            n=int(same.n.sum()), marked=int(marked[mine].sum()), clusters=len(hit), stands_out=int(same.stands_out.sum()))
        if hit:
            i = max(hit, key=hit.get)
            at,main = same.loc[i],same.iloc[0]
            row |= dict(size=at.n, recall=hit[i]/max(1, row['marked']), purity=hit[i]/at.n, place=at.place, there=at.there, right=at.right,
                others_right=main.right, follows=at.follows, others_follow=main.follows, separation=at.separation, beyond=at.beyond,
                told=bool(at.stands_out))
        yield row

@call_parse
def main(data:str, # Folder of the MNIST and CIFAR-10 files
         out:str='runs/strategies', # Beds and heat are kept here
         numbers:str='0-47', # The networks, from-to
         csv:str=str(Path(__file__).with_suffix('.csv')), # Where the table goes
):
    "Train and measure"
    torch.set_num_threads(1)
    out,(a,b) = Path(out).resolve(),map(int, numbers.split('-'))
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for o in map(what, range(a, b+1)): rows += scored(o, trained(o, Path(data), out))
    keep_table(pd.DataFrame(rows).round(4), Path(csv), ['number','name'])
    print(pd.DataFrame(rows).round(2).to_string())
