"Finer heat: several layers multiplied, several views averaged, larger images; torchcam as the oracle"
import ast
from functools import partial
from pathlib import Path
import pytest, pytorch_grad_cam, timm, torch, torchcam.methods
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from fastai.vision.all import *
from proxy_attention.all import *
from proxy_attention.attribution.cams import formulas, product_heat
from proxy_attention.attribution.finer import Smoothed, back, image_views, moved, view_of
from proxy_attention.attribution.heatmap import agreement, degenerate, normalize_heat, resize_heat
from proxy_attention.attribution.methods import as_attribution, heat_of, view_size
from proxy_attention.attribution.targets import Region
from proxy_attention.data.loaders import whole_dl
from proxy_attention.proxy.step import Settings, heat_of_items
from shared_fixtures import small_net

@pytest.fixture
def batch(trained):
    x,y = trained.dls.valid.one_batch()
    return x.as_subclass(Tensor)[:6], y.as_subclass(Tensor)[:6]

@pytest.fixture(scope='module')
def deep():
    "4×4 cells in its last layer for images of 128 pixels"
    torch.manual_seed(0)
    return timm.create_model('resnet10t', num_classes=5).eval()

@pytest.fixture
def pics(): return torch.randn(2,3,128,128, generator=torch.Generator().manual_seed(1))

# Layers multiplied

refined = pytest.mark.skipif(not hasattr(torchcam.methods, 'RefineCAM'), reason='torchcam before 0.5')

@refined
@pytest.mark.parametrize('of,peer', [('LayerCAM','LayerCAM'), ('GradCAM','GradCAM'), ('XGradCAM','XGradCAM')])
@pytest.mark.parametrize('layers', [['3','4'], ['2','3','4']])
def test_the_product_is_torchcams(trained, batch, of, peer, layers):
    "Each map is scaled, stretched to the finest grid and multiplied, and the product is scaled; only an empty map counts differently"
    model,(x,y) = trained.model.eval(),batch
    ours = RefineCAM(model, layers, of=of)(x, y)
    with torchcam.methods.RefineCAM(model, layers, base_method=getattr(torchcam.methods, peer)) as cam:
        theirs = torch.cat([cam(int(o), model(i[None].requires_grad_()))[0] for i,o in zip(x, y)]).detach()
    each = [degenerate(as_attribution(of)(model, o)(x, y)) for o in layers]
    whole = ~torch.stack(each).any(0)
    assert whole.any() and ours.shape==theirs.shape
    torch.testing.assert_close(ours[whole], theirs[whole], atol=2e-4, rtol=1e-3)

@pytest.mark.skipif(not hasattr(pytorch_grad_cam, 'RefineCAM'), reason='pytorch-grad-cam before RefineCAM')
def test_the_product_agrees_with_pytorch_grad_cam(trained, batch):
    "It stretches each map to pixels before it multiplies, so it agrees but for the stretching"
    model,(x,y) = trained.model.eval(),batch
    theirs = pytorch_grad_cam.RefineCAM(model, [model[3],model[4]], base_method=pytorch_grad_cam.LayerCAM)(
        x, [ClassifierOutputTarget(int(o)) for o in y])
    ours = resize_heat(RefineCAM(model, ['3','4'])(x, y), x.shape[-2:])
    assert agreement(ours, torch.from_numpy(theirs))[0].nanmean()>.95

def test_an_empty_map_says_nothing_about_places():
    a,empty = torch.rand(2,4,4),torch.zeros(2,4,4)
    assert torch.equal(product_heat([a,empty]), a) and degenerate(product_heat([empty,empty])).all()
    assert torch.equal(product_heat([a,a]), a*a)

def test_the_last_grids_in_one_pass(deep, pics):
    "One pass forward, whatever the number of layers; the finest of the grids is that of the heat"
    seen = []
    handle = deep.conv1.register_forward_hook(lambda m,i,o: seen.append(len(o)))
    for n,side in ((1,4),(2,8),(3,16),(100,64)):
        cam = RefineCAM(deep, target=1, grids=n)
        cam(pics)
        seen.clear()
        assert cam(pics).shape==(2,side,side) and len(seen)==1
    handle.remove()
    assert torch.equal(RefineCAM(deep, target=1, grids=1)(pics), LayerCAM(deep, 'layer4', target=1)(pics))
    assert str(RefineCAM(deep, ['layer3','layer4'])).endswith('at layer3 and layer4')

def test_other_cams_find_their_own_layer(deep, pics):
    "What was found for one class is not taken for another one"
    RefineCAM(deep, target=1)(pics)
    assert GradCAM(deep, target=1)(pics).shape==(2,4,4) and RefineCAM(deep, target=1, grids=3)(pics).shape==(2,16,16)

def test_the_default_takes_a_finer_grid_where_the_last_is_coarse(deep, pics):
    "Two grids for few or wide cells; one for 7×7 cells of four pixels; other CAMs, and layers that were asked for, stay"
    auto = LayerCAM(deep, target=1)
    assert torch.equal(auto(pics), RefineCAM(deep, target=1)(pics)) and [o.name for o in auto.layers]==['layer3','layer4']
    large = F.interpolate(pics, (224,224))
    assert torch.equal(auto(large), RefineCAM(deep, target=1)(large)) and [o.grid for o in auto.layers]==[(14,14),(7,7)]
    small,digits = digits_net(5).eval(),F.interpolate(pics, (28,28))
    fine = LayerCAM(small, target=1)
    assert torch.equal(fine(digits), LayerCAM(small, find_layer(small, digits), target=1)(digits))
    assert [o.grid for o in fine.layers]==[(7,7)]
    each = [resize_heat(LayerCAM(deep, o, target=1)(pics), (8,8)) for o in ('layer3','layer4')]
    asked = LayerCAM(deep, ['layer3','layer4'], target=1)(pics)
    torch.testing.assert_close(asked, normalize_heat((each[0]+each[1])/2), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(LayerCAM(deep, target=1, fuse='max')(pics), normalize_heat(torch.maximum(*each)), atol=1e-5, rtol=1e-4)
    assert all(as_attribution(o)(deep, target=1)(pics).shape==(2,4,4) for o in ('GradCAM','XGradCAM','HiResCAM','EigenCAM','FinerCAM'))

@pytest.mark.parametrize('of', list(formulas()))
def test_every_formula_can_be_multiplied(deep, pics, of):
    cam = RefineCAM(deep, target=1, of=of, scale=False)
    heat = cam(pics)
    each = [normalize_heat(as_attribution(of)(deep, o, 1)(pics)) for o in cam.layers]
    torch.testing.assert_close(heat, each[0]*resize_heat(each[1], (8,8)), atol=1e-4, rtol=1e-3)
    assert cam.asks_target==as_attribution(of).asks_target

@pytest.mark.parametrize('make,words', [
    (lambda m: RefineCAM(m, of='ScoreCAM'), 'No formula is called'), (lambda m: RefineCAM(m, of=ScoreCAM), 'has no formula for one layer'),
    (lambda m: RefineCAM(m, of=RefineCAM), 'has no formula'), (lambda m: RefineCAM(m, of='FinerCAM'), 'No formula is called'),
    (lambda m: RefineCAM(m, grids=0), 'grids=0'),
    (lambda m: RefineCAM(m, fuse='times'), "No fuse is called 'times'"),
    (lambda m: RefineCAM(m, target=0)(torch.rand(1,3,1,1)), 'No layer of this'),
    (lambda m: Smoothed(m, views='flips'), "did you mean 'flip'"), (lambda m: Smoothed(m, views=[]), 'There is no view'),
    (lambda m: Smoothed(m, views=3), 'A view is'), (lambda m: Smoothed(m, of='LayerCam'), "did you mean 'LayerCAM'"),
    (lambda m: Smoothed('net'), 'looks into a torch'), (lambda m: Enlarged(m, size=4), 'size=4'),
    (lambda m: Enlarged(m, size=(64,64,64)), 'one number for both'), (lambda m: Enlarged(m)([1]), 'takes a batch of images'),
    (lambda m: Enlarged(m)(torch.zeros(1,3,64,64).byte()), 'images are torch.uint8'),
    (lambda m: Smoothed(m)(torch.zeros(3,64,64)), 'takes a batch of images'),
    (lambda m: Enlarged(m, of=lambda xb,yb: xb)(torch.rand(1,3,64,64)), 'returned a heatmap of shape')])
def test_what_is_refused(deep, make, words):
    with pytest.raises((ValueError,TypeError), match=words): make(deep)

# Odd models and images

ways = [RefineCAM, Smoothed, Enlarged, partial(Smoothed, of='RefineCAM', views=('flip','zoom','shift')),
        partial(Enlarged, of=Smoothed, size=(96,144))]
named = dict(argvalues=ways, ids=['RefineCAM','Smoothed','Enlarged','smoothed product','smoothed and enlarged'])

@pytest.mark.parametrize('how', **named)
def test_grey_images_a_single_layer_and_channels_last(how):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1,4,3,2,1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4,2))
    x = torch.rand(2,1,32,48)
    heat = how(model, target=1)(x)
    assert heat.ndim==3 and heat.amax()==1 and heat.shape[1]*3==heat.shape[2]*2
    torch.testing.assert_close(how(model, target=1)(x.contiguous(memory_format=torch.channels_last)), heat, atol=1e-5, rtol=1e-4)
    assert len(how(model.double(), target=1)(x.double()))==2 and model.training

@pytest.mark.parametrize('how', **named)
def test_a_flat_image_has_no_heat_and_its_neighbours_have(deep, pics, how):
    x = pics.clone()
    x[0] = torch.nan
    assert degenerate(how(deep, target=1)(x)).tolist()==[True,False]

@pytest.mark.parametrize('how', **named)
def test_half_precision_agrees(deep, pics, how):
    exact = how(deep, target=1)
    half = how(deep, target=1, fast=True)
    assert half.has_fast and half.fast and not exact.fast
    assert agreement(half(pics), exact(pics))[0].mean()>.97
    half.fast = False
    assert torch.equal(half(pics), exact(pics))

def test_a_vit_has_one_grid():
    torch.manual_seed(0)
    vit = timm.models.VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=10).eval()
    x = torch.randn(2,3,32,32)
    assert torch.equal(RefineCAM(vit, target=1)(x), LayerCAM(vit, target=1)(x))
    assert Smoothed(vit, target=1, of='LeGrad')(x).shape==(2,4,4)
    with pytest.raises(ValueError, match='cannot explain images of 224×224 pixels .*another `size`'): Enlarged(vit, target=1)(x)

@pytest.mark.parametrize('how', **named)
def test_the_model_is_left_as_it_was(trained, batch, how):
    "Also where a function of yours is refined, which reads the model itself and fails"
    model,(x,y) = trained.model.train(),batch
    rng,grads,seen = torch.get_rng_state(),[p.grad for p in model.parameters()],[]
    def own(xb, yb):
        seen.append(model.training)
        model(xb).sum().backward()
        if len(seen)>1: raise KeyError('mine')
        return xb.mean(1)
    how(model)(x, y)
    if how is not RefineCAM:
        attr = how.func(model, of=own) if isinstance(how, partial) else how(model, of=own)
        with pytest.raises(KeyError): [attr(x, y) for _ in range(2)]
        assert not any(seen) and not attr.has_fast
    assert all(m.training for m in model.modules()) and all(p.grad is g for p,g in zip(model.parameters(), grads))
    assert not any(m._forward_hooks for m in model.modules()) and torch.equal(rng, torch.get_rng_state())
    with how(model) as attr: attr(x, y)
    assert (attr if how is RefineCAM else attr.of).ready is None

# Views

def test_views_are_undone():
    x = torch.rand(2,3,16,24)
    torch.testing.assert_close(moved(x, view_of()), x, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(moved(x, view_of(mirror=True)), x.flip(3), atol=1e-5, rtol=1e-4)
    down = moved(x, view_of(down=.25, right=-.5))
    torch.testing.assert_close(down[...,4:,:12], x[...,:12,12:], atol=1e-5, rtol=1e-4)
    for v in [view_of(True, 1.3, .1, -.2), *(v for o in image_views.values() for v in o)]:
        last = torch.tensor([[0.,0.,1.]])
        torch.testing.assert_close(torch.cat([v,last])@torch.cat([back(v),last]), torch.eye(3))
    big = moved(x, view_of(zoom=2.))
    torch.testing.assert_close(resize_heat(x, (32,48))[...,8:24,12:36], big, atol=1e-5, rtol=1e-4)

def test_the_flip_is_the_mean_of_both_sides(deep, pics):
    raw = LayerCAM(deep, target=1, scale=False)
    torch.testing.assert_close(Smoothed(deep, target=1, scale=False)(pics), (raw(pics)+raw(pics.flip(3)).flip(2))/2, atol=1e-5, rtol=1e-4)

@pytest.mark.parametrize('views', ['flip','zoom','shift',('flip','zoom','shift'),view_of(True, 1.1, .05, -.1)])
def test_heat_comes_back_to_where_it_belongs(deep, views):
    "Heat that is the image itself, smooth and lopsided, stays what it is under every view, up to the stretching"
    y,x = torch.meshgrid(torch.linspace(0,1,64), torch.linspace(0,1,64), indexing='ij')
    spot = torch.exp(-((y-.3)**2+(x-.6)**2)/.02)[None,None].expand(2,3,64,64)
    heat = Smoothed(deep, of=lambda xb,yb: xb.mean(1), views=views)(spot)
    at = resize_heat(heat, (64,64))
    torch.testing.assert_close(at, normalize_heat(spot.mean(1)), atol=.06, rtol=0)
    assert (at.flatten(1).argmax(1)==spot[:,0].flatten(1).argmax(1)).all() or agreement(at, spot.mean(1))[0].min()>.99

# Larger images

def test_enlarged_is_the_heat_of_the_enlarged_image(deep, pics):
    larger = F.interpolate(pics, (160,224), mode='bilinear')
    assert torch.equal(Enlarged(deep, target=1, size=(160,224))(pics), LayerCAM(deep, target=1)(larger))
    assert torch.equal(Enlarged(deep, target=1, size=(160,224))(larger), LayerCAM(deep, target=1)(larger)), 'it is not stretched twice'
    assert Enlarged(deep).view((128,192))==(224,336) and Enlarged(deep).view((300,500))==(300,500)
    assert view_size(LayerCAM(deep), (128,128))==(128,128) and view_size(Smoothed(deep, of=Enlarged), (112,112))==(224,224)
    assert view_size(Suspect(deep, partial(Enlarged, size=96))(deep), (32,32))==view_size(Suspect(deep, size=96)(deep), (32,32))==(96,96)

@pytest.fixture
def sizes(monkeypatch):
    "The size of every batch of images that reaches the explained model"
    seen,was = [],LayerCAM.__call__
    def noted(self, xb, yb=None):
        seen.append(tuple(xb.shape[-2:]))
        return was(self, xb, yb)
    monkeypatch.setattr(LayerCAM, '__call__', noted)
    return seen

@pytest.mark.parametrize('how', [partial(Enlarged, size=48), 'suspect'])
def test_a_step_reads_the_files_in_the_size_that_is_asked_for(few, how, sizes):
    "Not the small images, stretched: the file has details of its own"
    learn = digits_learner(few)
    if how=='suspect': how = Suspect(learn, size=48)
    heat = heat_of_items(learn, Settings(attribution=how), torch.arange(8))[0]
    dl = whole_dl(learn.dls, learn.dls.train_ds.items[:8], size=(48,48))
    ours = torch.cat([LayerCAM(learn.model, target='margin')(x.as_subclass(Tensor)) for x,_ in dl])
    assert set(sizes)=={(48,48)} and torch.equal(heat, ours.half().float())
    assert torch.equal(heat_on(learn, learn.dls.train_ds.items[:8], how), ours)

@pytest.mark.parametrize('how', ['RefineCAM','Smoothed',partial(Enlarged, of=RefineCAM, size=48)])
def test_wherever_an_attribution_is_accepted(few, quiet, how):
    assert as_attribution('Enlarged') is Enlarged
    learn = quiet(digits_learner(few), 'fit', 1, 1e-3)
    files = learn.dls.valid_ds.items[:4]
    assert not degenerate(heat_on(learn, files, how)).all()
    show_where(learn, files, attribution=how)
    assert len(probe(learn, n=8, attribution=how).heat)==8
    assert explanation_scores(learn, files, how, metrics='deletion', n=4).notna().all().all()
    pa = ProxyAttention(steps=['p',1], select='all', attribution=Suspect(learn, how), p=1.)
    assert quiet(digits_learner(few, cbs=pa), 'fit', 1, 1e-3).proxy_attention.history.made.sum()>0
    pa = ProxyAttention(steps=[1,'p',1], select='all', attribution=how, p=1.)
    quiet(digits_learner(few, cbs=pa), 'fit', 2, 1e-3)
    assert pa.history.made.sum()>0 and (how if isinstance(how, str) else 'Enlarged') in pa.log.method.iloc[0]

def test_never_served_it_leaves_no_trace(few, quiet, weights, same):
    plain = quiet(digits_learner(few), 'fit', 2, 1e-3)
    for how in ('RefineCAM','Smoothed',partial(Enlarged, size=48)):
        pa = ProxyAttention(steps=[1,'p',1], attribution=how, select='all', p=0.)
        assert same(weights(quiet(digits_learner(few, cbs=pa), 'fit', 2, 1e-3)), weights(plain)) and len(pa.history)==1

def test_every_module_that_takes_names_knows_those_of_finer_heat():
    "`Smoothed` and `Enlarged` register themselves in a module that `as_attribution` cannot import: it comes later"
    root = Path(__file__).parent.parent/'proxy_attention'
    def imported(f):
        here = ['proxy_attention',*f.relative_to(root).with_suffix('').parts]
        for o in ast.walk(ast.parse(f.read_text(encoding='utf-8'))):
            if isinstance(o, ast.ImportFrom) and o.level: yield '.'.join([*here[:-o.level], *([o.module] if o.module else [])])
            elif isinstance(o, ast.Import): yield from (a.name for a in o.names)
    needs = {'.'.join(['proxy_attention',*f.relative_to(root).with_suffix('').parts]):{*imported(f)} for f in root.rglob('*.py')}
    def reaches(m, seen):
        if m.endswith('.attribution.finer'): return True
        new = needs.get(m, set())-seen
        seen |= new
        return any(reaches(o, seen) for o in new)
    users = [m for m in needs if 'as_attribution(' in (root.parent/(m.replace('.','/')+'.py')).read_text(encoding='utf-8')
             and not m.startswith('proxy_attention.attribution')]
    assert len(users)>5 and not [m for m in users if not reaches(m, {m})]

# Several targets at once

@pytest.mark.parametrize('how', ['auto','LayerCAM','RefineCAM','Smoothed','Enlarged'])
def test_several_targets_give_the_maps_of_each(deep, pics, how):
    attr = as_attribution(how)(deep, target='pred')
    found = attr.each(pics, [0,3])
    assert found.shape[:2]==(2,2) and str(attr.target)=='pred'
    for k,i in enumerate((0,3)): torch.testing.assert_close(found[:,k], as_attribution(how)(deep, target=i)(pics), atol=1e-5, rtol=1e-4)

def test_the_default_runs_a_model_once_for_all_targets(deep, pics):
    ran,attr = [],as_attribution('auto')(deep, target='pred')
    attr(pics)
    with deep.register_forward_hook(lambda m,i,o: ran.append(len(o))): attr.each(pics, [0,1,3])
    assert ran==[2]

def test_layers_are_looked_for_once(pics):
    "Also where the last grid is coarse, and a second one is taken"
    net,ran = timm.create_model('resnet10t', num_classes=5).eval(),[]
    net.register_forward_hook(lambda m,i,o: ran.append(len(o)))
    for how in ('auto','LayerCAM','RefineCAM'): as_attribution(how)(net, target='pred')(pics)
    finding = [n for n in ran if n==1]
    assert len(finding)<=2 and ran.count(2)==3 # for the layers, and for channels last

def test_smoothed_moves_labels_of_pixels():
    "A mirrored view has mirrored labels, so the heat of a mirrored image is the mirrored heat"
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()
    x,y = torch.rand(1,3,16,16),torch.zeros(1,16,16, dtype=torch.long)
    y[:,:,:5] = 1
    seen = []
    class Seen(Region):
        def fix(self, out, yb=None):
            seen.append(yb)
            return super().fix(out, yb)
    Smoothed(net, layer='3', target=Seen(1, 'label'), of='GradCAM')(x, y)
    assert torch.equal(seen[0], y) and torch.equal(seen[1], y.flip(2))
    points = torch.rand(1,3,2)
    Smoothed(small_net(), target=lambda out,yb: seen.append(yb) or out[:,0], of='GradCAM')(x, points)
    assert torch.equal(seen[-1], points) # only labels of pixels have a place in the image
