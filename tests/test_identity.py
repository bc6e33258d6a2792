"The identity of an experiment: everything that matters changes it, and nothing else does"
import json, shutil, sys
from copy import deepcopy
from functools import partial
from pathlib import Path
import numpy as np, pytest, torch
from torch import nn
from fastai.callback.mixup import MixUp
from fastai.losses import CrossEntropyLossFlat, FocalLoss, LabelSmoothingCrossEntropy
from fastai.vision.augment import Flip, Resize
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
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader
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
