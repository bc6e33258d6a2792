"Augmentations as fills: they act under the mask alone, are drawn from the fill's own numbers, and keep the size"
import pickle, random
import numpy as np, pytest, torch
from torch import nn
from torchvision import transforms as old
from torchvision.transforms import v2
from fastai.vision.all import *
from fastai.callback.mixup import MixUp
from proxy_attention.all import *
from proxy_attention.attribution.heatmap import HeatmapStore
from proxy_attention.core import called
from proxy_attention.experiment.arms import arms, find_arm
from proxy_attention.experiment.identity import digest, what_is
from proxy_attention.masking.fills import erase, fills
from proxy_attention.masking.rules import area_budget, random_rest, rest, rules
from proxy_attention.proxy.serving import Proxies

def seeded(seed): return torch.Generator().manual_seed(seed)
def planes(img): return np.atleast_3d(np.asarray(img))

def image(mode, size=(24,32), seed=0):
    rng = np.random.default_rng(seed)
    if mode=='I;16': return Image.fromarray(rng.integers(0, 65536, size, dtype=np.uint16))
    return Image.fromarray(rng.integers(0, 256, size if mode=='L' else (*size,len(mode)), dtype=np.uint8))

def darker(x): return x*.5
def of_python(x): return x*random.random()
def of_numpy(x): return x*np.random.rand()

# transforms remember what they drew: each test makes its own
augmentations = dict(
    aug_transforms=aug_transforms, erasing=lambda: RandomErasing(p=1.), brightness=lambda: Brightness(.6, p=1.),
    rotate=lambda: Rotate(40, p=1.), flip=lambda: Flip(p=1.), warp=lambda: Warp(.4, p=1.), hue=lambda: Hue(.3, p=1.),
    of_a_function=lambda: Transform(darker), rand_augment=lambda: v2.RandAugment(magnitude=20), jitter=lambda: v2.ColorJitter(.8, .8),
    several=lambda: [v2.GaussianBlur(3),Zoom(p=1.)], composed=lambda: v2.Compose([v2.RandomInvert(1.),v2.RandomAffine(20)]),
    function=lambda: darker, python=lambda: of_python, numpy=lambda: of_numpy)

@pytest.mark.parametrize('mode', ['RGB','L','RGBA','I;16'])
@pytest.mark.parametrize('name', ['erasing','rotate','brightness','function','erase'])
def test_any_kind_of_image_changes_under_the_mask_alone(name, mode):
    img,heat = image(mode), torch.rand(5, 7, generator=seeded(0))
    m = Masker('rest', 'erase' if name=='erase' else Augmented(augmentations[name]()))
    kept,found = ~m.mask_over(heat, (24,32)).numpy(),0
    for seed in range(6): # a rectangle may be a small one
        a,b = planes(img),planes(m(img, heat, rng=seeded(seed)))
        assert a.shape==b.shape and a.dtype==b.dtype and (a[kept]==b[kept]).all()
        found += (a!=b).any()
    assert found>=3

@pytest.mark.parametrize('name', list(augmentations))
def test_the_same_numbers_make_the_same_image_and_others_go_on_as_before(name):
    img,fill = torch.rand(3, 24, 32, generator=seeded(1)),Augmented(augmentations[name]())
    random.seed(3), np.random.seed(4), torch.manual_seed(5)
    want = [random.random(),np.random.rand(),torch.rand(1)]
    random.seed(3), np.random.seed(4), torch.manual_seed(5)
    made = [fill(img, seeded(o)) for o in (7,8,7)]
    assert [random.random(),np.random.rand(),torch.rand(1)]==want
    assert torch.equal(made[0], made[2]) and made[0].shape==img.shape and 0<=made[0].min()<=made[0].max()<=1
    assert any(not torch.equal(img, o) for o in made)
    drawn = any(not torch.equal(fill(img, seeded(o)), made[0]) for o in range(10))
    assert drawn==(name not in ('flip','function','of_a_function'))
    random.seed(13), np.random.seed(14), torch.manual_seed(15)
    assert torch.equal(fill(img, seeded(7)), made[0])

def test_what_fails_leaves_the_random_numbers_alone():
    def fails(x): raise ArithmeticError('nothing to see')
    random.seed(3), np.random.seed(4), torch.manual_seed(5)
    want = [random.random(),np.random.rand(),torch.rand(1)]
    random.seed(3), np.random.seed(4), torch.manual_seed(5)
    with pytest.raises(RuntimeError, match=r'The augmentation .*fails fails on a batch \(1, 3, 8, 8\) .*nothing to see'):
        Augmented(fails)(torch.rand(3, 8, 8, generator=seeded(0)), seeded(1))
    assert [random.random(),np.random.rand(),torch.rand(1)]==want

@pytest.mark.parametrize('mode', ['RGB','L','RGBA','I;16'])
@pytest.mark.parametrize('size', [(1,1),(1,9),(2,2)])
def test_the_smallest_images(size, mode): # of which fastai flips or turns none of a single pixel
    img,heat = image(mode, size),torch.rand(2, 2, generator=seeded(0))
    for f in ('erase', Augmented(RandomErasing(p=1.)), Augmented(Brightness(p=1.)), Augmented(darker)):
        assert planes(Masker('everything', f)(img, heat, rng=seeded(0))).shape==planes(img).shape
    x = torch.rand(3, *size, generator=seeded(1))
    for seed in range(20): assert (erase(x, seeded(seed))!=x).any(0).sum()<=.5*x[0].numel() # where no rectangle fits, nothing changes

@pytest.mark.parametrize('top,dtype', [(1,torch.float),(255,torch.float),(255,torch.uint8),(65535,torch.int32),(65535,torch.float)])
def test_an_image_keeps_its_range(top, dtype):
    "An augmentation sees numbers from 0 to 1, whatever the image has; black images are no brighter for it"
    seen = []
    def look(x):
        seen.append((float(x.min()), float(x.max())))
        return 1-x
    img = (torch.rand(3, 8, 8, generator=seeded(0))*top).to(dtype)
    new = Augmented(look)(img, seeded(0))
    assert 0<=seen[0][0]<.1 and .9<seen[0][1]<=1
    assert torch.allclose(new.double(), top-img.double(), atol=top*1e-6)
    if dtype.is_floating_point: return
    black = torch.zeros(3, 4, 4, dtype=dtype)
    assert Augmented(darker)(black, seeded(0)).max()==0 and Augmented(lambda x: x+.5)(black, seeded(0)).max()==127.5

def test_a_normalized_image_has_its_own_range():
    img = torch.randn(3, 16, 16, generator=seeded(0))
    new = Augmented(lambda x: 1-x)(img, seeded(0))
    assert torch.allclose(new, img.min()+img.max()-img, atol=1e-5)
    flat = Augmented(darker)(torch.full((3,4,4), -2.), seeded(0))
    assert torch.isfinite(flat).all()

def test_what_comes_after_normalize_meets_mean_0_and_spread_1():
    seen = {}
    class Late(Transform):
        order = 100
        def encodes(self, x:TensorImage):
            seen['late'] = torch.std_mean(x, (-2,-1))
            return x+1
    class Early(Transform):
        order = 3
        def encodes(self, x:TensorImage):
            seen['early'] = float(x.min()),'late' in seen
            return x
    img = torch.rand(3, 16, 16, generator=seeded(0))*.5
    new = Augmented([Late(),Early()])(img, seeded(0))
    std,mean = (o.flatten() for o in seen['late'])
    assert torch.allclose(std, torch.ones(3), atol=.01) and torch.allclose(mean, torch.zeros(3), atol=1e-5)
    assert seen['early'][0]>=0 and not seen['early'][1]
    assert torch.allclose((new-img).mean((1,2)), img.std((1,2)), atol=.01)

def test_a_batch_is_drawn_image_by_image():
    imgs = torch.rand(1, 3, 16, 16, generator=seeded(0)).expand(3, 3, 16, 16)
    for f in (erase, Augmented(RandomErasing(p=1., sl=.2)), Augmented(v2.RandAugment(magnitude=20))):
        a,b,c = f(imgs, seeded(2))
        assert not torch.equal(a, b) and not torch.equal(b, c) and torch.equal(f(imgs, seeded(2))[0], a)

def test_erase_leaves_all_but_a_rectangle():
    img = torch.rand(3, 60, 80, generator=seeded(0))
    before,shares = img.clone(),[]
    for seed in range(40):
        new = erase(img, seeded(seed))
        rows,cols = ((new!=img).any(0).any(o).nonzero().flatten() for o in (1,0))
        if not len(rows): continue
        h,w = (int(o.max()-o.min())+1 for o in (rows,cols))
        assert (new!=img)[:,rows.min():rows.max()+1,cols.min():cols.max()+1].float().mean()>.9
        shares.append(h*w/4800)
    assert torch.equal(img, before) and max(shares)<.32 and .1<np.mean(shares)<.2 # 0 to 30 %

@pytest.mark.parametrize('tfms,error,match', [
    (None, TypeError, 'tfms=None should be an augmentation'), ([], TypeError, r'tfms=\[\] should be'),
    ('erase', TypeError, "'erase' should be"),
    ([Flip(),3], TypeError, 'should be an augmentation')])
def test_what_is_no_augmentation_is_refused(tfms, error, match):
    with pytest.raises(error, match=match): Augmented(tfms)

def of_pil(x:Image.Image): return x

@pytest.mark.parametrize('tfm,name', [
    (Resize(8),'Resize'), (RandomResizedCrop(8),'RandomResizedCrop'), (ToTensor(),'ToTensor'), (Transform(of_pil),'of_pil')])
def test_what_would_do_nothing_is_refused(tfm, name):
    with pytest.raises(TypeError, match=f'The augmentation {name}.* is for PIL images, and would do nothing to a batch of tensors'):
        Augmented([Flip(),tfm])

@pytest.mark.parametrize('tfm,error,match', [
    (v2.CenterCrop(4), ValueError, r'CenterCrop\(.* returns something of shape \(1, 3, 4, 4\) for a batch \(1, 3, 8, 12\): a fill keeps'),
    (RandomResizedCropGPU(5), ValueError, r'RandomResizedCropGPU\(.*shape \(1, 3, 5, 5\)'),
    (v2.Grayscale(1), ValueError, r'shape \(1, 1, 8, 12\)'), (lambda x: None, ValueError, 'of type NoneType'),
    (old.RandomPosterize(2, p=1.), RuntimeError, r'uint8.*those of torchvision.transforms.v2')])
def test_what_keeps_no_size_is_said(tfm, error, match):
    with pytest.raises(error, match=match): Augmented(tfm)(torch.rand(3, 8, 12), seeded(0))

def test_another_augmentation_is_another_experiment():
    class Silent(nn.Module): # says nothing of its settings
        def __init__(self, by):
            super().__init__()
            self.by = by
        def forward(self, x): return x*self.by
    def fills_(): return [Augmented(o) for o in (RandomErasing(p=1.), RandomErasing(p=1., sh=.2), Rotate(10), Rotate(20), Brightness(.1),
        v2.RandAugment(magnitude=3), v2.RandAugment(magnitude=4), v2.Compose([v2.GaussianBlur(3)]), v2.Compose([v2.GaussianBlur(5)]),
        v2.Compose([Silent(.1)]), v2.Compose([Silent(.2)]), Silent(.1), darker, lambda x: x*.25, [Flip(),Hue()], [Hue()])]
    names = [digest(what_is(o)) for o in fills_()]
    assert len(set(names))==len(names) and names==[digest(what_is(o)) for o in fills_()]
    for f,was in zip(fills_(), names): # nor is it another one once it has been used
        f(torch.rand(3, 8, 8), seeded(0))
        assert digest(what_is(f))==was

def test_it_says_what_it_is():
    assert repr(Augmented([RandomErasing(p=1., sh=.2),v2.GaussianBlur(3)]))==\
        'Augmented(GaussianBlur(kernel_size=(3, 3), sigma=(0.1, 2.0)), RandomErasing(p=1.0, sh=0.2))'.replace('(0.1, 2.0)', '[0.1, 2.0]')
    assert repr(Augmented(darker))=='Augmented(darker)' and repr(Augmented(RandomErasing))=='Augmented(RandomErasing())'
    assert '\n' not in repr(Augmented([*aug_transforms(),v2.Compose([v2.RandomInvert()])]))
    assert repr(Masker('rest', Augmented(Flip())))=='Masker(rest, Augmented(Flip()), max_area=1.0)' and called(fills['erase'])=='erase'
    assert repr(pickle.loads(pickle.dumps(Augmented(Rotate(3)))))==repr(Augmented(Rotate(3)))

def test_the_margin_is_a_square_around_what_is_kept():
    "Widening down and across gives the same as a square window, for any size of image and margin"
    for (h,w),margin in (((32,32),.1), ((24,40),.05), ((9,31),.3), ((16,16),0.)):
        heat,r = torch.rand(3, h, w),round(margin*min(h, w))
        wide = F.max_pool2d(area_budget(heat, .1).float()[:,None], 2*r+1, 1, r)[:,0]>0
        assert torch.equal(rest(heat, .1, margin), ~wide) and torch.equal(rest(heat[0], .1, margin), ~wide[0])

@pytest.mark.parametrize('margin', [0., .05])
def test_random_rest_keeps_as_much_elsewhere(margin):
    "As much, always the same place for the same map, and on average no nearer to the heat than chance"
    heat = torch.rand(200, 5, 5, generator=seeded(1))
    a,b = (Masker(o, keep=.2, margin=margin) for o in ('rest','random_rest'))
    own,moved = (~o.drawn(heat, (60,60)) for o in (a,b))
    assert torch.equal(moved, ~b.drawn(heat, (60,60))) and not b.by_heat and b.max_area==1 and rules['random_rest'] is random_rest
    assert torch.equal(moved.sum((1,2)), own.sum((1,2)))
    overlap = ((own&moved).sum((1,2))/own.sum((1,2))).mean()
    assert abs(overlap-own.float().mean())<.06
    flat = torch.zeros(1, 5, 5)
    assert not random_rest(flat, flat).any() and not rest(flat).any()
    with pytest.raises(ValueError, match='may mask the whole image'): Masker('random_rest', max_area=.5)

def test_what_was_served_is_made_again():
    store,img = HeatmapStore([4], torch.rand(1, 4, 4, generator=seeded(0))),image('RGB')
    for fill in ('erase', Augmented([*aug_transforms(),RandomErasing(p=1.)])):
        def made(seed):
            p = Proxies(store, Masker('rest', fill))
            p.draw(seed)
            return np.asarray(p.make(img, 4)[0]).tolist()
        assert made(1)==made(1) and len({str(made(o)) for o in range(5)})>1

# The recipes

def fitted(few, how, n, *args, **kwargs):
    learn = digits_learner(few, **kwargs)
    with learn.no_bar(), learn.no_logging(): how(learn, n, *args)
    return learn

@pytest.mark.parametrize('name', ['keep','vitamin'])
def test_heat_of_all_is_renewed_without_a_pass_for_losses(few, monkeypatch, name):
    def never(*args, **kwargs): raise AssertionError('an extra pass')
    monkeypatch.setattr('proxy_attention.proxy.losses.interpret_train', never)
    learn = fitted(few, recipes[name].train, 8, 1e-3)
    pa,n = learn.proxy_attention,len(learn.dls.train_ds)
    steps = pa.history
    assert steps.epoch.tolist()==[0,5] and (steps.known==n).all() and (steps.chosen==n).all() and (steps.made==n).all()
    assert pa.p==dict(keep=.25, vitamin=.5)[name] and abs(len(pa.served)/n-pa.p)<.2
    assert len(pa.fit_state.how)==1 # the second step has forgotten the first
    labels = [int(o[1]) for o in learn.dls.train_ds]
    for i,donor in pa.served[['item','donor']].values[:12].tolist():
        was,(new,) = learn.dls.train_ds[i][0],pa.proxy_images([i])
        kept = ~pa.masker.mask_over(pa.store.at(pa.store.row(i)), (32,32)).numpy()
        assert kept.mean()>=.3 and (planes(was)[kept]==planes(new)[kept]).all()
        if name=='keep': assert donor==-1
        else: assert donor!=i and labels[donor]==labels[i] and (planes(learn.dls.train_ds[donor][0])[~kept]==planes(new)[~kept]).all()

def test_they_are_fitted_by_one_cycle(few):
    plain = fitted(few, lambda o, n: o.fit_one_cycle(n, 2e-3, pct_start=.5), 2)
    for how in (lambda o, n: o.fit_proxy(n, 2e-3, pct_start=.5), lambda o, n: recipes['keep'].fit(o, n, 2e-3, pct_start=.5)):
        assert fitted(few, how, 2, cbs=ProxyAttention.keep()).recorder.lrs==plain.recorder.lrs
    usual = fitted(few, lambda o, n: o.fit_one_cycle(n, 2e-3), 2)
    assert fitted(few, arms['one cycle'], 2, 2e-3).recorder.lrs==usual.recorder.lrs!=fitted(few, arms['no proxy'], 2, 2e-3).recorder.lrs
    probed = fitted(few, lambda o, n: o.fit_proxy(n, 2e-3, probe=1), 2, cbs=ProxyAttention.keep())
    assert probed.recorder.lrs==fitted(few, arms['no proxy'], 2, 2e-3).recorder.lrs

def test_the_random_twin_keeps_as_much(few):
    for name,kw in (('vitamin',{}), ('keep',{}), ('keep',dict(keep=.5, fill='noise'))):
        m = recipes[name](rule='random_rest', **kw).masker
        assert m.rule is random_rest and m.kwargs==dict(keep=.3, margin=.05)|{k:v for k,v in kw.items() if k=='keep'}
    assert arms['random rest'].__doc__==repr(ProxyAttention.vitamin(rule='random_rest'))
    assert find_arm('keep(rule=random_rest,keep=0.5)').__doc__==repr(ProxyAttention.keep(rule='random_rest', keep=.5))
    pa = fitted(few, arms['random rest'], 2, 1e-3).proxy_attention
    assert pa.masker.rule is random_rest and len(pa.served)>10

def test_another_rule_takes_what_it_can():
    assert ProxyAttention.keep(rule='area', area=.2).masker.kwargs==dict(area=.2)
    assert ProxyAttention.keep(rule='rest').masker.kwargs==ProxyAttention.keep().masker.kwargs==dict(keep=.3, margin=.05)
    assert ProxyAttention.background(rule='random_rest').masker.kwargs==dict(keep=.3)
    assert not ProxyAttention.background(rule='rest_of_otsu').masker.kwargs
    with pytest.raises(TypeError, match='`threshold`. The rule rest .* take keep, margin. It is an argument of absolute, max_share.'):
        ProxyAttention.background(threshold=.4)
    with pytest.raises(ValueError, match="did you mean 'rest'"): ProxyAttention.keep(rule='rset')
    with pytest.raises(TypeError, match='takes no `margin`'): ProxyAttention.keep(rule='area', margin=.1)

def test_how_the_call_reads():
    pa = ProxyAttention.keep(fill=Augmented(v2.ColorJitter(.4)))
    assert "fill=Augmented(ColorJitter(brightness=(0.6, 1.4)))" in repr(pa) and 'Augmented(ColorJitter(' in repr(pa.masker)
    assert 'Gong' in recipes['keep']._repr_markdown_() and 'one cycle' in recipes['keep']._repr_markdown_()

def test_an_augmentation_that_does_not_fit_is_refused_before_the_first_batch(few):
    seen = []
    class Watch(Callback):
        def after_batch(self): seen.append(1)
    with pytest.raises(ValueError, match='a fill keeps height, width and channels'):
        fitted(few, recipes['keep'].train, 3, 1e-3, dict(fill=Augmented(v2.CenterCrop(8))), cbs=Watch())
    assert not seen

def test_mixup_beside_it_is_told_what_to_do(few):
    with pytest.raises(TypeError, match="choose losses='exact'"): fitted(few, recipes['keep'].train, 2, 1e-3, cbs=MixUp())
    learn = fitted(few, recipes['keep'].train, 2, 1e-3, dict(losses='exact'), cbs=MixUp())
    assert len(learn.proxy_attention.served)>10
