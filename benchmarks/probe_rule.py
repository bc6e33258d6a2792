"""How often is the probe right? `python benchmarks/probe_rule.py` trains on digits with and without a shortcut and writes `probe_rule.csv`

With `--data`, a folder that holds mnist_10k_images_idx3.gz, mnist_10k_labels_idx1.gz and cifar10_jpg.zip, it goes on to MNIST and CIFAR."""
import gzip, io, shutil, tempfile, warnings, zipfile
from pathlib import Path
with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    import numpy as np, pandas as pd, torch
    from PIL import Image
    from fastcore.script import call_parse
    from fastai.vision.all import ImageDataLoaders, Learner, accuracy, set_seed
    from proxy_attention.data.digits import accuracy_on, digit_images, digits_net, palette, plant
    from proxy_attention.interpret.probe import likely_to_help, probe

torch.set_num_threads(1)

def written(imgs, labels, parts, folder):
    "Images as files, a folder a class"
    for i,(img,label,part) in enumerate(zip(imgs, labels, parts)):
        d = folder/part/str(label)
        d.mkdir(parents=True, exist_ok=True)
        Image.fromarray(img).save(d/f'{i:05}.png')

def square(img, colour, y, x, side=8): return plant(img, colour, (y,x,side,side))
def cornered(img, look, corner): return square(img, palette[look], 24*(corner//2), 24*(corner%2))

def shifted(labels, rng, n): return (labels+rng.integers(1, n, len(labels)))%n # another label for each

# each gives, for images (n,32,32,3) and labels, `(training images, images whose shortcut lies or None)`
def nothing(imgs, labels, rng): return imgs, None
def random_corner(imgs, labels, rng):
    at = rng.integers(4, size=len(imgs))
    put = lambda looks: np.stack([cornered(*o) for o in zip(imgs, looks, at)])
    return put(labels), put(shifted(labels, rng, 10))
def fixed_corner(imgs, labels, rng):
    put = lambda looks: np.stack([cornered(o, k, 0) for o,k in zip(imgs, looks)])
    return put(labels), put(shifted(labels, rng, 10))
def middle(imgs, labels, rng):
    put = lambda looks: np.stack([square(o, palette[k], 12, 12) for o,k in zip(imgs, looks)])
    return put(labels), put(shifted(labels, rng, 10))
def says_nothing(imgs, labels, rng):
    return np.stack([cornered(o, k, c) for o,k,c in zip(imgs, rng.integers(10, size=len(imgs)), rng.integers(4, size=len(imgs)))]), None
def small_in_a_corner(imgs, labels, rng):
    res = np.zeros_like(imgs)
    for o,img,c in zip(res, imgs, rng.integers(4, size=len(imgs))):
        y,x = (0,18)[c//2], (0,18)[c%2]
        o[y:y+14, x:x+14] = np.asarray(Image.fromarray(img[6:26,6:26]).resize((14,14), Image.BILINEAR))
    return res, None
def decoy(imgs, labels, rng): # Ross et al. 2017: a grey swatch in a random corner
    at = rng.integers(4, size=len(imgs))
    put = lambda k: np.stack([square(o, 255-25*v, (0,28)[c//2], (0,28)[c%2], 4) for o,v,c in zip(imgs, k, at)])
    return put(labels), put(shifted(labels, rng, 10))
def masktune(imgs, labels, rng): # Asgari et al. 2022: a square top left in class 0, with 1 % of exceptions in training
    lies = rng.random(len(imgs))<.01
    put = lambda on: np.stack([square(o, (0,0,255), 0, 0, 4) if k else o for o,k in zip(imgs, on)])
    return put((labels==0)^lies), put(labels==1)

digit_sets = {
    'patch in a random corner':random_corner,
    'patch in one corner':fixed_corner,
    'patch in the middle':middle,
    'no patch':nothing,
    'patch that says nothing':says_nothing,
    'small digit in a corner':small_in_a_corner}

def load_mnist(data):
    x = np.frombuffer(gzip.open(data/'mnist_10k_images_idx3.gz').read(), np.uint8, offset=16).reshape(-1,28,28)
    y = np.frombuffer(gzip.open(data/'mnist_10k_labels_idx1.gz').read(), np.uint8, offset=8).astype(int)
    return np.repeat(np.pad(x, ((0,0),(2,2),(2,2)))[...,None], 3, -1), y

def load_cifar(data, per_class=1000):
    with zipfile.ZipFile(data/'cifar10_jpg.zip') as z:
        names = sorted(o for o in z.namelist() if o.endswith('.jpg') and 'train/' in o)
        by = {}
        for o in names: by.setdefault(o.split('/')[-2], []).append(o)
        pairs = [(o,i) for i,c in enumerate(sorted(by)) for o in by[c][:per_class]]
        return (np.stack([np.asarray(Image.open(io.BytesIO(z.read(o))).convert('RGB')) for o,_ in pairs]),
            np.array([i for _,i in pairs]), sorted(by))

def real_sets(data):
    "name → (images, labels, shortcut)"
    mx,my = load_mnist(data)
    cx,cy,names = load_cifar(data)
    car,truck = names.index('automobile'),names.index('truck')
    two = np.isin(cy, [car,truck])
    zero_one = {k:mx[my==k] for k in (0,1)}
    def dominoes(imgs, labels, rng): # a digit above a car or truck, 5 % of exceptions in training
        lies = rng.random(len(imgs))<.05
        put = lambda k: np.stack([np.concatenate([zero_one[v][rng.integers(len(zero_one[v]))], o]) for o,v in zip(imgs, k)])
        return put(labels^lies), put(1-labels)
    return {
        'MNIST':(mx[:2500], my[:2500], nothing),
        'Decoy MNIST':(mx[:2500], my[:2500], decoy),
        "MaskTune's MNIST":(mx[:2500], (my[:2500]>4).astype(int), masktune),
        'CIFAR-10':(cx[::4], cy[::4], nothing),
        'CIFAR-10, patch in a random corner':(cx[::4], cy[::4], random_corner),
        'CIFAR car or truck':(cx[two], (cy[two]==truck).astype(int), nothing),
        'Dominoes':(cx[two], (cy[two]==truck).astype(int), dominoes)}

def networks(name, imgs, labels, shortcut, seed, epochs, bs, done=()):
    "A row for a network trained for one epoch at a constant rate, and one for another trained for several in one cycle"
    rng,folder = np.random.default_rng(seed), Path(tempfile.mkdtemp())
    try:
        shown,lying = shortcut(imgs, labels, rng)
        valid = rng.random(len(imgs))<.2
        written(shown, labels, np.where(valid, 'valid', 'train'), folder)
        if lying is not None: written(lying[valid], labels[valid], ['lying']*int(valid.sum()), folder)
        for n in (1, epochs):
            if (name,seed,n) in done: continue
            set_seed(seed)
            dls = ImageDataLoaders.from_folder(folder, train='train', valid='valid', bs=bs, num_workers=0)
            learn = Learner(dls, digits_net(dls.c), metrics=accuracy)
            with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3) if n==1 else learn.fit_one_cycle(n, 3e-3)
            acc = {k:accuracy_on(learn, folder/k) for k in ('valid',*['lying']*(lying is not None))}
            p,other = probe(learn, areas=(.02,.05,.1,.2)), probe(learn, areas=.1, donor='any')
            yield dict(set=name, seed=seed, epochs=n, **acc, leans=acc.get('lying', 1.)<acc['valid']/2,
                area=p.area, edge=float(p.energy.hottest['edge']),
                **{f'{c}_{a:g}':float(p.flips.loc[a,c]) for c in ('carried','changes') for a in p.flips.index},
                any_carried=float(other.flips.carried[.1]), any_changes=float(other.flips.changes[.1]))
    finally: shutil.rmtree(folder)

def table(df):
    "How often each set got each grade"
    small = df[[c for c in df if c.startswith('carried_') and float(c.split('_')[1])<=.1]].max(1)
    df = df.assign(grade=[likely_to_help(*o) for o in zip(small, df.edge)])
    t = df.groupby(['set','epochs'], sort=False).agg(
        networks=('grade','size'), leaning=('leans','sum'),
        carried=('carried_0.1','mean'), any_donor=('any_carried','mean'), edge=('edge','mean'))
    for g in ('likely','unclear','unlikely'): t[g] = (df.grade==g).groupby([df.set,df.epochs], sort=False).sum()
    return t

@call_parse
def main(
    seeds:int=5, # Seeds for the sets of digits
    epochs:int=5, # Of the network that is trained for longer
    data:str='', # Folder with MNIST and CIFAR-10; nothing: digits only
    real_seeds:int=3, # Seeds for the sets of MNIST and CIFAR
    out:str=str(Path(__file__).with_suffix('.csv')), # Where the rows go
):
    "Train, probe, and compare what the probe says with what the network does where the shortcut lies"
    warnings.simplefilter('ignore')
    (imgs,labels),rows = digit_images(),pd.read_csv(out).to_dict('records') if Path(out).exists() else [] # goes on where it was cut off
    done = {(o['set'],o['seed'],o['epochs']) for o in rows}
    imgs = imgs[...,None].repeat(3, -1)
    jobs = [(k, imgs, labels, f, seed, epochs, 16) for seed in range(seeds) for k,f in digit_sets.items()]
    if data: jobs += [(k, *o, seed, epochs, 32) for seed in range(real_seeds) for k,o in real_sets(Path(data)).items()]
    for job in jobs:
        if {(job[0],job[4],n) for n in (1,epochs)}<=done: continue
        for row in networks(*job, done):
            rows.append(row)
            print({k:round(v, 2) if isinstance(v, float) else v for k,v in row.items()}, flush=True)
        pd.DataFrame(rows).round(4).to_csv(out, index=False)
    print(table(pd.DataFrame(rows)).round(2).to_string())
