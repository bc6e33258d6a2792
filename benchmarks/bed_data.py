"""Test beds from real data, for other benchmarks: `make(name, data, out, seed)`.

`python benchmarks/bed_data.py DATA OUT` makes all.
DATA holds `mnist_10k_images_idx3.gz`, `mnist_10k_labels_idx1.gz` and `cifar10_jpg.zip` (with `train/<class>/*.jpg` in it)."""
import io, zipfile
from functools import lru_cache, partial
from pathlib import Path
import numpy as np
from PIL import Image
from fastcore.script import call_parse
from proxy_attention.data.beds import beds, dominoes, no_shortcut, read_idx
from proxy_attention.core import by_name

@lru_cache(1)
def mnist(data): return [read_idx(Path(data)/f'mnist_10k_{o}.gz') for o in ('images_idx3','labels_idx1')]

def cifar(data, classes=None, n=None):
    "Training images of CIFAR-10, the first `n` of each class, and their labels"
    with zipfile.ZipFile(Path(data)/'cifar10_jpg.zip') as z:
        files = {}
        for o in sorted(z.namelist()):
            part,label,name = ([*o.split('/')]+['']*3)[:3]
            if part=='train' and name.endswith('.jpg') and (classes is None or label in classes):
                files.setdefault(label, []).append(o)
        files = {k:v[:n] for k,v in files.items()}
        return (np.stack([np.asarray(Image.open(io.BytesIO(z.read(o))).convert('RGB')) for v in files.values() for o in v]),
                np.array([k for k,v in files.items() for _ in v]))

def squares(bed, **own): return lambda path,data,**kwargs: beds[bed](path, *mnist(data), **own, **kwargs)
def vehicles(data): return cifar(data, ('automobile','truck'))
def tiles(conflict): return lambda path,data,**kwargs: dominoes(path, *mnist(data), *vehicles(data), conflict=conflict, **kwargs)
def plain(images, n=None):
    return lambda path,data,n_train,**kwargs: no_shortcut(path, *images(data), n_train=n or n_train, **kwargs)

def halves(data):
    "Below 5 or not"
    x,y = mnist(data)
    return x, (y>4).astype(int)
def below(data):
    "Cars and trucks, with nothing above"
    x,y = vehicles(data)
    return np.concatenate([np.zeros_like(x),x], 1), y

names = dict(
    two_colours=squares('two_colours'), random_corner=squares('two_colours', conflict=.01, corner='random'),
    masktune=squares('one_colour', conflict=.01), masktune_0=squares('one_colour'), decoy=squares('swatches'),
    dominoes_95=tiles(.05), dominoes_100=tiles(0.),
    mnist=plain(mnist), mnist_halves=plain(halves), cars=plain(below), mnist_1k=plain(mnist, 1000),
    cifar=plain(partial(cifar, n=2000)), cifar10=plain(partial(cifar, n=2000), 8000))

def make(name, # One of `names`
         data, # Folder of the real data
         out, # Beds are made in here
         seed=0, # Draws everything
         n_train=4000, # Images to train on; fixed for mnist_1k (1,000) and cifar10 (8,000)
         n_test=2000 # Test images
)->Path: # The bed
    "Make a bed, or take the one that is there: a folder is there whole or not at all"
    f = by_name(name, names, 'bed')
    path = Path(out)/f'{name}-{n_train}-{n_test}-seed{seed}'
    if path.exists(): return path
    try: return f(path, str(data), seed=seed, n_train=n_train, n_test=n_test)
    except FileExistsError: return path # another process was faster

@call_parse
def main(data:str, # Folder of the real data
         out:str, # Beds are made in here
         only:str='', # Only these, separated by commas
         seed:int=0, # Draws everything
):
    "Make test beds from MNIST and CIFAR-10"
    for o in only.split(',') if only else names: print(make(o, data, out, seed), flush=True)
