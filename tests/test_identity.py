"The identity of an experiment: everything that matters changes it, and nothing else does"
import importlib, json, os, random, shutil, subprocess, sys, time
from copy import deepcopy
from functools import partial
from pathlib import Path
from types import SimpleNamespace
import numpy as np, pandas as pd, pytest, timm, torch
from torch import nn
from fastai.callback.core import Callback
from fastai.callback.mixup import MixUp
from fastai.data.load import DataLoader
from fastai.data.core import DataLoaders, Datasets
from fastai.losses import CrossEntropyLossFlat, FocalLoss, LabelSmoothingCrossEntropy
from fastai.vision.augment import Brightness, Flip, RandomResizedCropGPU, Resize, Rotate, Warp, Zoom, aug_transforms
from fastai.vision.core import PILImage
from fastai.vision.data import ImageDataLoaders
from fasttransform import Transform
from PIL import Image
from proxy_attention.attribution.methods import Suspect
from proxy_attention.data.digits import digits, digits_learner
from proxy_attention.experiment.arms import Arms, arms, with_proxies
from proxy_attention.experiment.identity import *
from proxy_attention.proxy.callback import ProxyAttention
from proxy_attention.proxy.recipes import Recipe, recipes
from proxy_attention.proxy.successor import IfCarried

def written(code, name='f', **space):
    "A function as a notebook has it"
    space |= dict(__name__='__main__')
    exec(code, space)
    return space[name]

BASE = 'def g(x): return x+1\ndef f(learn, epochs, lr=1e-3):\n    return g(epochs)'
@pytest.mark.parametrize('code', [
    BASE.replace('    return g', '    "What it does"\n    return g'), BASE.replace('    return g', '    # a word\n\n    return g'),
    '\n\n'+BASE, BASE.replace('g(x): return x+1', 'g(y): return y+1')])
def test_what_does_not_count(code):
    "Docstrings, comments, the place, and names of arguments that are only used inside"
    assert what_is(written(code))==what_is(written(BASE))

@pytest.mark.parametrize('code,at', [
    (BASE.replace('x+1', 'x+2'), 'uses, g, code'), (BASE.replace('g(epochs)', 'g(epochs)+1'), 'code'),
    (BASE.replace('1e-3', '2e-3'), 'defaults'),
    (BASE.replace('g(epochs)', '[g(e) for e in range(epochs)]'), 'code'), (BASE.replace('g(epochs)', 'print(epochs)'), 'code')])
def test_what_counts(code, at): assert differs(what_is(written(BASE)), what_is(written(code)))[0].startswith(at)

def test_globals_that_are_used_count_and_others_do_not():
    code = 'def f(): return N'
    assert what_is(written(code, N=1, M=1))==what_is(written(code, N=1, M=2))!=what_is(written(code, N=2, M=1))

def test_where_a_script_is_does_not_count():
    "Also not if the function reads the `__file__` of another module"
    code = 'import torch\nfrom pathlib import Path\ndef f(): return Path(torch.__file__).parent'
    assert what_is(written(code, __file__='here/a.py'))==what_is(written(code, __file__='there/a.py'))

def test_values_that_are_closed_over_count():
    def made(k):
        def f(): return k
        return f
    assert what_is(made([1,2]))==what_is(made([1,2]))!=what_is(made([1,3]))
    assert differs(what_is(made(np.arange(3))), what_is(made(np.arange(3)+1)))[0]=='inside, k, digest'
    assert differs(what_is(made(nn.Linear(2,2))), what_is(made(nn.Linear(2,2))))[0]=='inside, k, weights'

def test_a_function_that_calls_itself_ends():
    code = 'def f(n): return f(n-1) if n else g(n)\ndef g(n): return f(n) if n else {}'
    assert what_is(written(code.format(0)))==what_is(written(code.format(0)))!=what_is(written(code.format(1)))

def test_nothing_depends_on_addresses_or_the_order_of_sets():
    def made(): return written('def f(): return (lambda x: x in {"a","b","c"})(S)', S=('a',), o=object())
    assert json.dumps(what_is(made()))==json.dumps(what_is(made()))
    assert ' at 0x' not in json.dumps([what_is(o) for o in arms.values()])

@pytest.mark.parametrize('o', [None, True, 3, .5, 'a', Path('a'), (1,2), {'a':1}, {1,2}, b'ab', np.arange(3), np.float32(1), torch.eye(2),
    len, np, Path, partial(int, base=2), nn.ReLU(), CrossEntropyLossFlat(), object(),
    Suspect(nn.Linear(2,2)), range(3), slice(1,2), Ellipsis])
def test_anything_has_an_identity_that_json_can_keep(o):
    assert json.loads(json.dumps(what_is(o)))==what_is(o) and len(digest(what_is(o)))==16

def test_types_are_told_apart():
    said = [digest(what_is(o)) for o in (1, True, '1', [1], {'1':1}, None, np.array(1), torch.tensor(1))]
    assert len(set(said))==len(said)

def test_a_class_of_the_notebook_counts_by_its_code():
    code = 'class C:\n    n = {}\n    def __call__(self, x): return x*{}'
    assert what_is(written(code.format(1, 2), 'C')())==what_is(written(code.format(1, 2), 'C')())
    for o in ((1,3),(2,2)): assert what_is(written(code.format(1, 2), 'C')())!=what_is(written(code.format(*o), 'C')())

def test_every_arm_is_known_apart():
    told = {k:digest(what_is(o)) for k,o in arms.items()}
    assert len(set(told.values()))==len(told) and told=={k:digest(what_is(o)) for k,o in Arms().items()}

def test_settings_of_a_recipe_count_and_what_is_said_of_it_does_not(monkeypatch):
    monkeypatch.setattr('proxy_attention.proxy.recipes.recipes', dict(recipes))
    assert what_is(with_proxies('shortcut'))!=what_is(with_proxies('shortcut', area=.2))
    assert what_is(with_proxies('probed', steps=IfCarried(n=100)))!=what_is(with_proxies('probed', steps=IfCarried(n=200)))
    one,two,three = (Recipe('late', said, dict(area=a)) for said,a in (('a',.1),('b',.1),('b',.2)))
    assert what_is(one)==what_is(two)!=what_is(three)

@pytest.mark.parametrize('a,b', [
    (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=.1)), (LabelSmoothingCrossEntropy(.1), LabelSmoothingCrossEntropy(.3)),
    (FocalLoss(gamma=2.), FocalLoss(gamma=5.)), *[tuple(nn.Sequential(nn.Linear(2,2), FocalLoss(gamma=o)) for o in (2.,5.))]])
def test_settings_that_the_text_of_a_module_lacks_count(a, b):
    if isinstance(a, nn.Sequential): b.load_state_dict(a.state_dict())
    assert str(a)==str(b) and differs(what_is(a), what_is(b))[0]=='settings'
    assert what_is(a)==what_is(deepcopy(a).eval())

def test_the_loss_and_its_weights_count():
    args = ({}, dict(weight=torch.ones(2)), dict(weight=torch.tensor([1.,2.])), dict(label_smoothing=.1))
    told = [what_is(CrossEntropyLossFlat(**o)) for o in args]
    assert len({digest(o) for o in told})==4

# Images

@pytest.fixture(scope='module')
def path(tmp_path_factory): return digits(tmp_path_factory.mktemp('d')/'digits', n=60)

def loaders(path, **kwargs):
    torch.manual_seed(0)
    return ImageDataLoaders.from_folder(path, train='train', valid='valid', bs=8, num_workers=0, **kwargs)

def changed_folder(path, tmp_path, how):
    new = Path(shutil.copytree(path, tmp_path/'other'))
    f = next((new/'train'/'3').iterdir())
    if how=='name': f.rename(f.with_name('9999.png'))
    if how=='label': shutil.move(f, new/'train'/'4')
    if how=='gone': f.unlink()
    if how=='content': Image.effect_noise((32,32), 90).convert('RGB').save(f)
    if how=='side': shutil.move(f, new/'valid'/'3')
    return new

@pytest.mark.parametrize('how', ['name','label','gone','content','side'])
def test_other_images(path, tmp_path, how):
    where,*_ = differs(data_of(loaders(path)), data_of(loaders(changed_folder(path, tmp_path, how))))
    assert where.startswith(('training images','validation images'))

def test_the_place_does_not_count(path, tmp_path, monkeypatch):
    there = data_of(loaders(changed_folder(path, tmp_path, None)))
    monkeypatch.chdir(path.parent)
    assert data_of(loaders(path))==there==data_of(loaders(Path('digits')))

@pytest.mark.parametrize('kw', [dict(batch_tfms=Flip()), dict(item_tfms=Resize(16))])
def test_transforms_count(path, kw): assert differs(data_of(loaders(path)), data_of(loaders(path, **kw)))[0]=='transforms'

def turns(by):
    def rotated(x:Image.Image): return x.rotate(by)
    return rotated

def turned(by):
    class Turned(Transform):
        def encodes(self, x:Image.Image): return x.rotate(by)
    return Turned

@pytest.mark.parametrize('how', [turns, turned])
def test_the_code_of_own_transforms_counts(path, how):
    was,same,now = (data_of(loaders(path, item_tfms=[Resize(16),how(o)])) for o in (90,90,180))
    assert was==same and differs(was, now)[0]=='transforms'

def test_what_a_learner_is(path):
    one,same,other = (learner_of(digits_learner(path, seed=s)) for s in (0,0,1))
    assert one==same and differs(one, other)[0]=='weights'
    learn = digits_learner(path, 0)
    learn.loss_func = CrossEntropyLossFlat(label_smoothing=.1)
    assert differs(one, learner_of(learn))[0].startswith('loss function')
    assert json.loads(json.dumps(one))==one

def test_data_that_has_no_files():
    def dls(k): return DataLoaders(*(DataLoader([(torch.full((3,8,8), k+i), i%2) for i in range(n)], bs=2) for n in (6,4)))
    assert data_of(dls(0.))==data_of(dls(0.))!=data_of(dls(1.))

def test_refused_in_a_sentence():
    with pytest.raises(ValueError, match=r'^The folder a holds another comparison. Model, head: 3 there, absent here. Name a new one.$'):
        refuse_other('The folder a holds another comparison', dict(model=dict(head=3)), dict(model={}), 'Name a new one.')
    assert refuse_other('x', dict(a=[1,2]), dict(a=[1,2])) is None

def test_releases():
    assert versions()['python']=='.'.join(map(str, sys.version_info[:3]))
    assert torch.__version__.startswith(versions()['torch'])

@pytest.mark.parametrize('cbs,other', [
    ([MixUp(.2)], [MixUp(.4)]), ([], [MixUp(.4)]), ([ProxyAttention(area=.1)], [ProxyAttention(area=.2)])])
def test_callbacks_count(path, cbs, other):
    told = [learner_of(digits_learner(path, cbs=o)) for o in (cbs, other)]
    assert differs(*told)[0].startswith('callbacks') and json.loads(json.dumps(told))==told
    assert learner_of(digits_learner(path, cbs=deepcopy(cbs)))==told[0]

def test_batch_size_counts(path): assert differs(*(learner_of(digits_learner(path, bs=o)) for o in (4,8)))[0]=='batch size'

# Settings that a text does not show

@pytest.mark.parametrize('make,one,two', [
    (Rotate,10,90), (partial(Zoom, 1.),1.1,2.), (Warp,.1,.5), (Brightness,.1,.9), (Flip,.5,.9),
    (lambda o: aug_transforms(max_rotate=o)[0],10,90), (lambda o: aug_transforms(max_zoom=o)[0],1.1,2.),
    (lambda o: aug_transforms(max_warp=o)[0],.1,.2), (lambda o: RandomResizedCropGPU(8, min_scale=o),.1,.9),
    (lambda o: Rotate(draw=lambda x: x.new_full((len(x),), o)),1.,2.)])
def test_settings_of_augmentations_count_and_what_was_drawn_does_not(path, make, one, two):
    dls = loaders(path, batch_tfms=make(one))
    was = data_of(dls)
    assert was==data_of(loaders(path, batch_tfms=make(one)))
    for o in (dls.train,dls.valid): o.one_batch()
    assert data_of(dls)==was and json.loads(json.dumps(was))==was
    assert differs(was, data_of(loaders(path, batch_tfms=make(two))))[0]=='transforms'

def test_settings_of_own_transforms_count(path):
    class Turned(Transform):
        def __init__(self, by): self.by,self.last = by,None
        def encodes(self, x:PILImage):
            self.last = random.random()
            return x.rotate(self.by)
    dls = loaders(path, item_tfms=[Turned(90),Resize(8)])
    was = data_of(dls)
    dls.one_batch()
    assert data_of(dls)==was!=data_of(loaders(path, item_tfms=[Turned(180),Resize(8)]))

NET = """class Net(nn.Module):
    def __init__(self, p):
        super().__init__()
        self.p,self.seen,self.act,self.body = p,0,torch.{},nn.Linear(4, 2)
    def forward(self, x):
        self.seen += 1
        return self.act(self.body(x))*self.p{}
"""
def net(p=1., act='relu', more=''):
    torch.manual_seed(0)
    return written(NET.format(act, more), 'Net', nn=nn, torch=torch)(p)

def test_settings_and_code_of_networks_count():
    one = network_of(net())
    assert one==network_of(net()) and 'weights' not in one
    for o in (net(.5), net(more='+1'), net(act='tanh')): assert network_of(o)!=one and what_is(o)!=what_is(net())
    used = net()
    used(torch.zeros(1, 4))
    assert used.seen==1 and network_of(used)==one, 'what a forward pass leaves is no setting'
    a,b = (timm.create_model('resnet18', drop_rate=o) for o in (0.,.8))
    start = time.perf_counter()
    assert network_of(a)!=network_of(b)
    assert time.perf_counter()-start<1

@pytest.fixture
def helpers(tmp_path, monkeypatch):
    "A module of one's own, `own_helpers`, and how to write it anew"
    monkeypatch.syspath_prepend(tmp_path)
    def write(n):
        (tmp_path/'own_helpers.py').write_text(f'N = {n}\ndef train(x): return x*N\ndef other(x): return x\n')
        importlib.invalidate_caches()
        sys.modules.pop('own_helpers', None)
    yield write
    sys.modules.pop('own_helpers', None)

many = 'def f(x):\n    y = ['+', '.join(f'x if x=={i}.5 else {i}' for i in range(1000, 1300))+']\n'

@pytest.mark.parametrize('code', [
    many+'    import own_helpers\n    return own_helpers.train(x)',
    'import own_helpers\ndef f(x): return own_helpers.train(x)',
    'import own_helpers as o\ndef f(x): return o.train(x)',
    'def f(x):\n    import own_helpers\n    return own_helpers.train(x)',
    'def f(x):\n    from own_helpers import train\n    return train(x)',
    'from own_helpers import train\ndef f(x): return train(x)'])
def test_other_modules_count_if_they_are_not_installed(helpers, code):
    def told(n):
        helpers(n)
        f = written(code)
        said = what_is(f)
        f(1)
        assert what_is(f)==said, 'what a function imports when it runs is known before'
        return said
    assert told(10)==told(10)!=told(20)

def test_an_import_that_fails_is_left_to_the_function():
    assert what_is(written('def f():\n    try: import no_such_module\n    except ImportError: return 1'))

class Scaled:
    def __init__(self, by): self.by = by

@pytest.mark.parametrize('make', [
    lambda o: SimpleNamespace(lr=o), lambda o: np.array([0,o]), lambda o: torch.tensor([0.,o]), Scaled,
    lambda o: pd.DataFrame(dict(a=np.r_[np.zeros(500), o, np.zeros(500)])),
    lambda o: {o}, lambda o: CrossEntropyLossFlat(label_smoothing=o)])
def test_values_of_many_kinds_count(make):
    one,same,other = (what_is(written('def f(): return V', V=make(o))) for o in (.1,.1,.2))
    assert one==same!=other

def test_base_classes_and_lists_of_a_class_count():
    code = 'class A:\n    def f(self): return {}\nclass C(A):\n    steps = [{}]\n    name = "x"'
    told = [digest(what_is(written(code.format(*o), 'C'))) for o in ((1,1),(1,1),(2,1),(1,2))]
    assert told[0]==told[1] and len(set(told))==3

def test_an_attribute_may_be_called_as_a_field_of_the_description():
    class A:
        def __init__(self, a): self.a = a
    assert what_is(A(1))==what_is(A(1))!=what_is(A(2)) and what_is(A(1))['a']==what_is(A)

@pytest.mark.parametrize('dtype', ['float','object','str'])
def test_a_table_of_pixels_counts_by_its_values(dtype):
    def made(v=0):
        df = pd.DataFrame(np.zeros((300,64))).astype(dtype)
        df.iloc[150,30] = str(v) if dtype=='str' else v
        return items_of(Datasets(df, tfms=[lambda row: torch.tensor(1.)]))
    assert made()==made()!=made(1)

def test_arrays_in_a_table_count_by_their_values():
    told = lambda v: what_is(pd.DataFrame(dict(a=[np.r_[np.zeros(5000), v, np.zeros(5000)], 1])))
    assert told(0)==told(0)!=told(1)

def test_nan_equals_nan():
    assert differs(dict(a=float('nan'), b=[np.nan]), dict(a=float('nan'), b=[float('nan')])) is None
    assert differs(dict(a=float('nan')), dict(a=1.)) and differs(dict(a=1.), dict(a=float('nan')))

# What a learner trains with

class Noise(Callback):
    def __init__(self, sigma=.1): self._sigma,self.seen = sigma,0
    def after_batch(self): self.seen += 1

def other_noise():
    class Noise(Callback):
        def __init__(self, sigma=.1): self._sigma,self.seen = sigma,0
        def after_batch(self): self.seen += 2
    return Noise()

@pytest.mark.parametrize('at,change', [
    ('momentum', lambda l: setattr(l, 'moms', (.9,.8,.9))), ('weight decay of biases', lambda l: setattr(l, 'wd_bn_bias', True)),
    ('training of frozen', lambda l: setattr(l, 'train_bn', False)), ('learning rate', lambda l: setattr(l, 'lr', .1)),
    ('groups of parameters', lambda l: setattr(l, 'splitter', lambda m: [list(m.parameters())])),
    ('frozen parameters', lambda l: next(l.model.parameters()).requires_grad_(False)),
    ('callbacks, noise', lambda l: l.add_cb(Noise())), ('network', lambda l: setattr(l.model[0], 'extra', 1)),
    ('weights of the images', lambda l: setattr(l.dls.train, 'wgts', np.ones(3)))])
def test_what_a_learner_trains_with_counts(path, at, change):
    one,learn = learner_of(digits_learner(path)),digits_learner(path)
    assert learner_of(learn)==one
    change(learn)
    assert differs(one, learner_of(learn))[0].startswith(at)

def test_own_callbacks_count_by_their_code_and_settings(path):
    told = lambda *cbs: learner_of(digits_learner(path, cbs=list(cbs)))['callbacks']
    one,used = told(Noise()),Noise()
    used.seen = 9
    assert one==told(Noise())==told(used) and 'seen' not in one['noise']
    assert differs(one, told(Noise(.9)))[0]=='noise, _sigma'
    assert differs(one, told(other_noise()))[0].startswith('noise, code')
    assert set(told(Noise(), Noise(.9)))=={'noise','noise_2'} and told(Noise(), Noise(.9))!=told(Noise(), Noise(.8))

def test_a_figure_of_a_callback_does_not_count(path):
    class Draws(Callback):
        def __init__(self, by): self.by,self.pictures = by,Opaque()
    class Opaque: pass
    Opaque.__module__ = 'matplotlib.figure'
    told = lambda by: learner_of(digits_learner(path, cbs=[Draws(by)]))['callbacks']['draws']
    assert told(1)==told(1)!=told(2) and set(told(1))=={'code','by'}

def test_what_reads_the_items_counts_and_where_they_are_does_not(path, tmp_path):
    def told(path, by):
        there = sorted(path.glob('train/*/*.png'))
        df = pd.DataFrame([dict(f=f'train/{o.parent.name}/{o.name}', y=int(o.parent.name)%2) for o in there])
        def get_x(f): return torch.full((3,8,8), float(by*(path/f).exists()))
        files = [str(path/o) for o in df.f]
        return (data_of(ImageDataLoaders.from_df(df, path, seed=0, num_workers=0)),
                data_of(Datasets(files, [[get_x],[lambda f: int(Path(f).parent.name)]]).dataloaders(bs=4, num_workers=0)))
    other = Path(shutil.copytree(path, tmp_path/'deeper'/'other'))
    one = told(path, 90)
    assert one==told(path, 90)==told(other, 90)
    table,own = told(path, 180)
    assert table==one[0] and differs(one[1], own)[0]=='type transforms'

def told_of(path):
    "Digests of many things, for another process"
    many = dict(batch_tfms=aug_transforms(max_rotate=10, max_warp=.3), item_tfms=[Resize(8),turns(90)])
    learn = digits_learner(path, 0, cbs=[Noise(), MixUp(.3)])
    learn.dls = loaders(path, **many)
    return dict(learner=learner_of(learn), net=network_of(net()), arms=digest({k:what_is(o) for k,o in arms.items()}),
        table=what_is(pd.DataFrame(dict(a=[1.,np.nan], b=['x','y'], c=[{'q','r','s'},None]))), function=what_is(turns(3)))

def test_another_process_tells_the_same(path):
    code = 'import json, sys; sys.path.insert(0, sys.argv[1]); import test_identity as t; print(json.dumps(t.told_of(t.Path(sys.argv[2]))))'
    res = subprocess.run([sys.executable, '-c', code, Path(__file__).parent, path], capture_output=True, text=True,
        env=os.environ|dict(PYTHONHASHSEED='7', PYTHONPATH=os.pathsep.join(sys.path)))
    assert res.returncode==0, res.stderr[-2000:]
    sys.path.insert(0, str(Path(__file__).parent))
    here = importlib.import_module('test_identity').told_of(path) # with the name that the module has there
    assert differs(json.loads(res.stdout.splitlines()[-1]), here) is None

class Fills(nn.Module):
    "A network that keeps what its forward pass has seen, and a setting in a dictionary"
    def __init__(self, at=1):
        super().__init__()
        self.lin,self.at,self.seen,self.sizes = nn.Linear(2,2),dict(at=at),[],{}
    def forward(self, x):
        self.seen.append(float(x.mean()))
        self.sizes[tuple(x.shape)] = len(self.sizes)
        return self.lin(x)*self.at['at']

def test_what_a_forward_pass_keeps_is_no_setting():
    net = Fills()
    was = network_of(net)
    net(torch.ones(3,2))
    assert network_of(net)==was!=network_of(Fills(at=2))

def test_a_callback_can_say_what_it_is():
    "Without the time at which it was made"
    class Timer(Callback):
        def __init__(self, every=1): self.every,self.began = every,time.perf_counter()
    class Says(Timer):
        def identity(self): return dict(every=self.every)
    assert callback_of(Timer())!=callback_of(Timer()) and what_is(Timer())!=what_is(Timer())
    assert callback_of(Says())==callback_of(Says())!=callback_of(Says(2)) and what_is(Says())==what_is(Says())
