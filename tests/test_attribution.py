"Oracles: captum, pytorch-grad-cam and torchcam on trained networks; what must not break, and what must be left alone"
import contextlib, gc, inspect, io, weakref
from copy import deepcopy
from functools import partial
import pytest, torch, timm, torchvision, torchcam.methods, pytorch_grad_cam
from captum.attr import (InputXGradient, IntegratedGradients, GuidedGradCam,
    LayerActivation, LayerGradCam, LayerGradientXActivation, Saliency)
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from fastai.vision.all import *
from proxy_attention.all import *
from proxy_attention.masking.fills import either
from proxy_attention.data.loaders import whole_dl
from proxy_attention.attribution.cams import first_component, half_type
from proxy_attention.attribution.heatmap import agreement, degenerate, normalize_heat, points_at, resize_heat
from proxy_attention.attribution.methods import as_attribution, attributions, captum_methods, fast_agrees, heat_of
from proxy_attention.attribution.targets import Index, Margin, Region
from proxy_attention.interpret.metrics import iou
from proxy_attention.proxy.serving import modes
from proxy_attention.experiment.config import flags, number
from shared_fixtures import small_net

@pytest.fixture
def batch(trained): 
    x,y = trained.dls.valid.one_batch()
    return x.as_subclass(Tensor), y.as_subclass(Tensor)

def small_vit(**kw):
    return timm.models.VisionTransformer(
        **(dict(img_size=32, patch_size=4, embed_dim=48, depth=3, num_heads=3, num_classes=10)|kw))
def small_swin():
    return timm.models.SwinTransformer(
        img_size=32, patch_size=2, embed_dim=24, depths=(1,1), num_heads=(2,4), window_size=4, num_classes=10)

@pytest.fixture(scope='session')
def nets(trained):
    "Name → a network that has learned the digits, the layer looked at, and how another library reads it"
    res = dict(cnn=(trained.model, '4', None))
    for name,make,layer,read in (('vit', small_vit, 'blocks.2.norm1', lambda t: t[:,1:].unflatten(1, (8,8)).permute(0,3,1,2)),
                                 ('swin', small_swin, 'norm', lambda t: t.permute(0,3,1,2))):
        learn = digits_learner(digits(n=400), bs=8) # sets the seed
        learn.model = make()
        with learn.no_bar(), learn.no_logging(): learn.fit(2, 2e-3)
        res[name] = (learn.model.eval(), layer, read)
    return res

pixels = lambda heat: normalize_heat(resize_heat(heat, (32,32)))
both = [o for o in attributions if hasattr(pytorch_grad_cam, o) and o not in ('FinerCAM','RefineCAM')] # `test_finer.py` has the latter

@pytest.mark.parametrize('net', ['cnn','vit','swin'])
@pytest.mark.parametrize('how', both)
def test_agrees_with_pytorch_grad_cam(nets, batch, how, net, monkeypatch):
    """To 0.002 of the range: it works in numpy and adds 1e-7 to denominators

    In GradCAMPlusPlus it adds 1e-6, as much as small squared gradients, so there to a rank correlation of .98.
    It stretches maps for ScoreCAM with aligned corners; for this test it does as we do, with half-pixel centres."""
    monkeypatch.setattr(torch.nn, 'UpsamplingBilinear2d', lambda size: nn.Upsample(size, mode='bilinear', align_corners=False))
    if how=='AblationCAM' and net!='cnn': pytest.skip('it takes channels that can be negative to -1e7, we to 0 as in the paper')
    (model,layer,read),x,y = nets[net],batch[0][:6],batch[1][:6]
    model.eval()
    with contextlib.redirect_stderr(io.StringIO()):
        theirs = getattr(pytorch_grad_cam, how)(model=model, target_layers=[model.get_submodule(layer)], reshape_transform=read)(
            input_tensor=x, targets=[ClassifierOutputTarget(int(o)) for o in y])
    ours,theirs = as_attribution(how)(model, layer=layer)(x, y),torch.from_numpy(theirs)
    assert not degenerate(ours).all()
    if how=='GradCAMPlusPlus': assert agreement(pixels(ours), theirs)[0].nanmean()>.98
    elif how.startswith('Eigen'): # a component has no sign: each of theirs is ours, or ours turned around
        seen,looked = [],as_attribution(how)(model, layer=layer)
        looked.heat = lambda act,grad=None: seen.append(first_component(act if grad is None else act*grad)) or seen[-1]
        looked(x, y)
        torch.testing.assert_close(pixels(seen[0].relu()), pixels(ours))
        for either in zip(theirs, pixels(seen[0].relu()), pixels((-seen[0]).relu())):
            assert min((either[0]-o).abs().max() for o in either[1:])<.002
    else: torch.testing.assert_close(pixels(ours), theirs, atol=2e-3, rtol=0)

@pytest.mark.parametrize('how,peer', [(GradCAM,'GradCAM'), (XGradCAM,'XGradCAM'), (LayerCAM,'LayerCAM'), (ScoreCAM,'ScoreCAM')])
def test_agrees_with_torchcam(trained, batch, how, peer):
    """torchcam scales like we do; where its map is empty it has NaN, and ours is empty

    For ScoreCAM it scales before it stretches, the paper after, hence .01 there.
    Its GradCAMpp is left out: it divides a copy (`alpha[mask].div_`), so that its weights are not those of the paper."""
    model,(x,y) = trained.model.eval(), batch
    ours = how(model, layer='4')(x, y)
    with getattr(torchcam.methods, peer)(model, '4') as cam:
        x = x.clone().requires_grad_()
        theirs = torch.stack([cam(int(o), model(i[None]))[0][0] for i,o in zip(x, y)])
    torch.testing.assert_close(ours, theirs.nan_to_num(0).detach(), atol=.01 if how is ScoreCAM else 1e-4, rtol=1e-3)

def test_gradcam_plus_plus_is_the_papers_formula():
    "Equations 10, 11 and 19 of arXiv 1710.11063, place by place in double precision"
    torch.manual_seed(0)
    act,grad = torch.rand(2,5,3,4), torch.randn(2,5,3,4)
    a,g = act.double().numpy(),grad.double().numpy()
    heat = np.zeros((2,3,4))
    for b in range(2):
        for k in range(5):
            w = sum(g[b,k,i,j]**2/(2*g[b,k,i,j]**2 + a[b,k].sum()*g[b,k,i,j]**3)*max(g[b,k,i,j],0)
                    for i in range(3) for j in range(4))
            heat[b] += w*a[b,k]
    torch.testing.assert_close(GradCAMPlusPlus(nn.Identity()).heat(act, grad).double(), torch.from_numpy(heat.clip(0)),
                               atol=1e-4, rtol=1e-4)

newer = pytest.mark.skipif(not hasattr(torchcam.methods, 'LeGrad'), reason='torchcam before 0.5')

@newer
def test_finer_agrees_with_torchcam(trained, batch):
    model,(x,y) = trained.model.eval(), batch
    with torchcam.methods.FinerCAM(model, '4', gamma=.6, num_references=3) as cam:
        theirs = torch.stack([cam(int(o), model(i[None].requires_grad_()))[0][0] for i,o in zip(x, y)])
    torch.testing.assert_close(FinerCAM(model, '4', target='label')(x, y), theirs.nan_to_num(0).detach(), atol=1e-4, rtol=1e-3)

@newer
def test_legrad_agrees_with_torchcam():
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=3, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=5).eval()
    nn.init.normal_(model.heads.head.weight)
    x = torch.randn(3,3,32,32)
    ours = LeGrad(model, target=2)(x)
    with torchcam.methods.LeGrad(model, [f'encoder.layers.encoder_layer_{i}' for i in range(3)]) as cam:
        theirs = torch.stack([cam(2, model(o[None]))[0][0] for o in x])
    torch.testing.assert_close(ours, theirs.detach(), atol=1e-4, rtol=1e-3)

@pytest.mark.parametrize('net', ['cnn','vit','swin'])
def test_agrees_with_captum(nets, batch, net):
    (model,layer,read),(x,y) = nets[net],batch
    theirs = LayerGradCam(model.eval(), model.get_submodule(layer))
    if net=='cnn':
        return torch.testing.assert_close(
            GradCAM(model, scale=False)(x, y), theirs.attribute(x, y, relu_attributions=True)[:,0], atol=1e-6, rtol=1e-4)
    # captum reads tokens and channels-last maps wrongly, so only its gradients and activations are taken
    act = LayerActivation(model, model.get_submodule(layer)).attribute(x)
    grad = LayerGradientXActivation(model, model.get_submodule(layer), multiply_by_inputs=False).attribute(x, y)
    act,grad = read(act),read(grad)
    torch.testing.assert_close(
        GradCAM(model, layer, scale=False)(x, y), (grad.mean((2,3), keepdim=True)*act).sum(1).relu().detach(), atol=1e-5, rtol=1e-3)

@pytest.mark.parametrize('target', ['label','pred','margin'])
def test_targets_agree_with_autograd(trained, batch, target):
    model,(x,y) = trained.model.eval(), batch
    x = x.clone().requires_grad_()
    out = model(x)
    idx = y if target=='label' else out.argmax(1)
    score = out.gather(1, idx[:,None])[:,0]
    if target=='margin':
        score = torch.stack([o[i]-torch.cat([o[:i],o[i+1:]]).logsumexp(0) for o,i in zip(out, idx)])
    grad, = torch.autograd.grad(score.sum(), x)
    torch.testing.assert_close(
        Captum(model, Saliency, target=target, scale=False)(x.detach(), y), grad.abs().mean(1), atol=1e-6, rtol=1e-4)

def test_found_layer_is_the_named_one(trained, batch):
    assert torch.equal(GradCAM(trained.model)(*batch), GradCAM(trained.model, layer=trained.model[4])(*batch))

def agrees_with_difference(model, target, x, y, number):
    "Input times gradient of the target is that of `number(outputs)`"
    x = x.clone().requires_grad_()
    grad, = torch.autograd.grad(number(model.eval()(x)).sum(), x)
    torch.testing.assert_close(
        Captum(model, InputXGradient, target=target, scale=False)(x.detach(), y), (x*grad).mean(1).detach(), atol=1e-6, rtol=1e-4)

@pytest.mark.parametrize('target,number', [
    ('label', lambda o,y: (o*y).sum(1)), ('pred', lambda o,y: o.max(1).values), (4, lambda o,y: o[:,4]),
    (Margin(2), lambda o,y: o[:,2]-torch.cat([o[:,:2],o[:,3:]],1).logsumexp(1))])
def test_multi_label(trained, batch, target, number):
    y = (torch.rand(len(batch[0]),10)>.6).float()
    agrees_with_difference(trained.model, target, batch[0], y, lambda out: number(out, y))

@pytest.mark.parametrize('flat', [True,False])
def test_single_output_binary_and_regression(batch, flat):
    model = nn.Sequential(
        nn.Conv2d(3,4,3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4,1), *([nn.Flatten(0)] if flat else []))
    x,y = batch[0], batch[1]%2
    sign = lambda o: 2*o.flatten().float()-1
    agrees_with_difference(model, 'label', x, y, lambda out: out.flatten()*sign(y))
    agrees_with_difference(model, 'label', x, y[:,None].float(), lambda out: out.flatten()*sign(y))
    agrees_with_difference(model, 'pred', x, None, lambda out: out.flatten().abs())
    agrees_with_difference(model, 'label', x, torch.randn(len(x)), lambda out: out.flatten())
    agrees_with_difference(model, 0, x, None, lambda out: out.flatten())
    agrees_with_difference(model, lambda out,yb: (out.flatten()-yb)**2, x, torch.arange(len(x)).float(),
                           lambda out: (out.flatten()-torch.arange(len(x)))**2)
    for bad,words in (('finer','single output'), (1,'single output'), ('label','needs the labels')):
        with pytest.raises(ValueError, match=words): GradCAM(model, target=bad)(x)

def test_one_index_an_image_and_chunks(trained, batch):
    x,idx = batch[0],torch.arange(len(batch[0]))%10
    for how in (GradCAM, FinerCAM, ScoreCAM, AblationCAM, partial(Captum, method='IntegratedGradients', n_steps=3)):
        whole = how(trained.model, target=idx)(x)
        torch.testing.assert_close(how(trained.model, target=idx, chunk=5)(x), whole, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(how(trained.model, target=3)(x[3:4]), whole[3:4], atol=1e-4, rtol=1e-3)
    with pytest.raises(ValueError, match='3 indices for a batch of 16'): GradCAM(trained.model, target=idx[:3])(x)

@pytest.mark.parametrize('xb,yb,words', [
    (torch.rand(3,32,32),None,'tensor of shape'), (torch.rand(0,3,32,32),None,'tensor of shape'), ('x',None,'not str'),
    (torch.rand(2,3,32,32),torch.tensor([1]),'2 images but 1 labels'),
    (torch.rand(2,3,32,32),torch.tensor([1,10]),'the model has 10 outputs'),
    (torch.rand(2,3,32,32),torch.tensor([.5,1.5]),'give whole numbers')])
def test_wrong_batches_get_a_sentence(trained, xb, yb, words):
    for how in (GradCAM, partial(Captum, method='Saliency')):
        with pytest.raises(ValueError, match=words): how(trained.model, target='label' if yb is not None else 'pred')(xb, yb)

@pytest.mark.parametrize('arch,grid,name', [
    ('resnet10t',(4,6),'layer4'), ('vgg11',(4,6),'features'), ('efficientnet_lite0',(4,6),'bn2'),
    ('mobilenetv3_small_050',(4,6),'blocks'), ('densenet121',(4,6),'features'), ('convnext_atto',(4,6),'norm_pre'),
    ('vit_tiny_patch16_224',(8,12),'blocks.11.norm1'), ('deit_tiny_distilled_patch16_224',(8,12),'blocks.11.norm1'),
    ('vit_small_patch14_reg4_dinov2',(8,12),'blocks.11.norm1'), ('swin_tiny_patch4_window7_224',(4,6),'norm'),
    ('xcit_nano_12_p16_224',(8,12),'cls_attn_blocks.1.norm1'), ('coatnet_pico_rw_224',(4,6),None), ('maxvit_pico_rw_256',(8,12),None),
    ('mixer_s32_224',(7,7),'norm'), ('vit_tiny_r_s16_p8_224',(4,6),'blocks.11.norm1'), ('convit_tiny',(14,14),'blocks.11.norm1')])
def test_layer_and_grid_are_found_for_oblong_inputs(arch, grid, name):
    "Of all that timm has, one of a kind; a ViT of 14-pixel patches gets as many of them"
    size = (112,168) if 'patch14' in arch else (256,384) if 'maxvit' in arch else (224,224) if grid[0]==grid[1] else (128,192)
    kw = dict(img_size=size) if any(o in arch for o in ('vit_tiny','vit_small','deit','swin','maxvit','coatnet')) else {}
    model = timm.create_model(arch, num_classes=5, **kw).eval()
    layer = find_layer(model, torch.randn(1,3,*size))
    assert layer.grid==grid and name in (None,layer.name), layer
    cam = LayerCAM(model, target='pred', scale=False)
    heat = cam(torch.randn(3,3,*size))
    assert heat.shape==(3,*cam.layers[0].grid) and torch.isfinite(heat).all() and cam.layer.grid==grid
    coarse = min(grid)<6 or size[0]/grid[0]>24 # between the stem and the tokens of a hybrid ViT there is no other grid, nor in a mixer
    finer = [(2*grid[0],2*grid[1])] if coarse and arch not in ('vit_tiny_r_s16_p8_224','mixer_s32_224') else []
    assert [o.grid for o in cam.layers]==[*finer,grid], arch

@pytest.mark.parametrize('arch', [
    'alexnet','squeezenet1_1','googlenet','shufflenet_v2_x0_5','mnasnet0_5','mobilenet_v2','swin_t','vit_b_32'])
def test_torchvision_models(arch):
    model = getattr(torchvision.models, arch)(**(dict(init_weights=False) if arch=='googlenet' else {}))
    grid = find_layer(model, torch.randn(1,3,224,224)).grid
    assert grid in ((6,6),(7,7),(13,13))
    assert GradCAM(model, target='pred')(torch.randn(2,3,224,224)).shape==(2,*grid)

def test_a_model_of_ones_own(batch):
    "Two branches, a reused layer, a `view` that needs channels first, an output dictionary"
    class Own(nn.Module):
        def __init__(self, wrap=False):
            super().__init__()
            self.a = nn.Conv2d(3,6,3,padding=1)
            self.b = nn.Conv2d(3,6,5,stride=2,padding=2)
            self.act = nn.ReLU(inplace=True)
            self.head = nn.Linear(6*16*16,10)
            self.wrap = wrap
        def forward(self, x):
            out = self.head((self.act(F.max_pool2d(self.a(x), 2)) + self.act(self.b(x))).view(len(x), -1))
            return dict(scores=out) if self.wrap else out
    model,x = Own(),batch[0]
    attr = GradCAM(model, target='pred', scale=False)
    ours = attr(x)
    assert not attr.can_last and attr.layer.name=='b'
    torch.testing.assert_close(
        ours, LayerGradCam(model.eval(), model.b).attribute(x, model(x).argmax(1), relu_attributions=True)[:,0].detach(),
        atol=1e-6, rtol=1e-4)
    fused = GradCAM(model, ['a','b'], target='pred')
    assert fused(x).shape==(len(x),32,32) and len(fused.layers)==2
    with pytest.raises(ValueError, match='ran 2 times in one pass'): GradCAM(model, 'act', target='pred')(x)
    with pytest.raises(TypeError, match='returns a dict'): GradCAM(Own(True), target='pred')(x)
    with pytest.raises(ValueError, match='list of layers is empty'): GradCAM(model, [])

def test_fused_layers_agree_with_pytorch_grad_cam(trained, batch):
    model,x,y = trained.model.eval(),batch[0][:4],batch[1][:4]
    theirs = pytorch_grad_cam.LayerCAM(model=model, target_layers=[model[3],model[4]])(
        input_tensor=x, targets=[ClassifierOutputTarget(int(o)) for o in y])
    ours = pixels(LayerCAM(model, ['3','4'])(x, y))
    assert agreement(ours, torch.from_numpy(theirs))[0].min()>.98 # it adds them in pixels, we on the finer of the two grids

def test_fastai_bodies(path):
    dls = ImageDataLoaders.from_folder(path, train='train', valid='valid', bs=4, num_workers=0, item_tfms=Resize(64))
    for arch in (resnet18, 'resnet10t', squeezenet1_1):
        model = vision_learner(dls, arch, pretrained=False).model
        assert GradCAM(model, target='pred')(torch.randn(2,3,64,64)).shape[0]==2

def test_frozen_inplace_and_nested_modes(trained, batch):
    model = nn.Sequential(
        nn.Conv2d(3,8,3,padding=1), nn.ReLU(inplace=True), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8,10)).train()
    model[2].eval()
    for p in model.parameters(): p.requires_grad_(False)
    state = {k:v.clone() for k,v in model.state_dict().items()}
    a = GradCAM(model, scale=False)(*batch)
    ref = LayerGradCam(model.eval(), model[3]).attribute(batch[0].requires_grad_(), batch[1], relu_attributions=True)[:,0]
    torch.testing.assert_close(a, ref.detach(), atol=1e-6, rtol=1e-4)
    assert all(torch.equal(v, state[k]) for k,v in model.state_dict().items())

@pytest.mark.parametrize('how', [EigenCAM, EigenGradCAM, ScoreCAM, AblationCAM, GradCAM])
def test_an_inplace_layer_does_not_change_what_was_seen(batch, how):
    "The layer before a ReLU that overwrites its input: the same map as with one that does not"
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3,8,3,padding=1), nn.ReLU(), nn.Conv2d(8,8,3,stride=2), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8,10)).eval()
    calm = how(net, '3', target=1)(batch[0])
    net[4].inplace = True
    assert torch.equal(how(net, '3', target=1)(batch[0]), calm) and not degenerate(calm).all()

@pytest.mark.parametrize('how', [LayerCAM, LeGrad, AttentionRollout])
def test_batches_of_different_sizes(how):
    model = timm.create_model('vit_tiny_patch16_224', dynamic_img_size=True, depth=2).eval()
    nn.init.normal_(model.head.weight)
    with how(model, target=1) as attr:
        for size in ((32,64), (64,32), (32,64)): assert attr(torch.rand(2,3,*size)).shape==(2,size[0]//16,size[1]//16)

def test_as_before_after_an_exception(trained, batch):
    model = trained.model.train()
    model[0][1].eval()
    modes = [m.training for m in model.modules()]
    def bad(out, y): raise RuntimeError('no')
    for attr in (GradCAM(model, target=bad), Captum(model, Saliency, target=bad)):
        with pytest.raises(RuntimeError, match='no'): attr(*batch)
    assert [m.training for m in model.modules()]==modes
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())
    assert torch.is_grad_enabled()

@pytest.mark.parametrize('how', [
    GradCAM, EigenGradCAM, partial(AblationCAM, channels=4), partial(ScoreCAM, channels=4), partial(Captum, method=Saliency), LeGrad])
def test_memory_and_hooks_over_100_calls(trained, how):
    import ctypes, gc
    torch.manual_seed(0)
    model = small_vit(depth=2) if how is LeGrad else trained.model
    attr,x = how(model, target='pred'),torch.rand(8,3,32,32)
    def alive():
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        return sum(isinstance(o, Tensor) for o in gc.get_objects()), int(open('/proc/self/statm').read().split()[1])*4096
    for _ in range(15): attr(x)
    tensors,resident = alive()
    for _ in range(100): attr(x)
    now = alive()
    assert now[0]<=tensors+2
    assert now[1]<resident+6.5e6, f'{(now[1]-resident)/1e6:.1f} MB more' # 100 leaked batches of one layer's activations are 13 MB
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())

def test_captum_methods_that_need_more(trained, batch):
    x,y = batch[0][:4],batch[1][:4]
    assert Captum(trained.model, GuidedGradCam, target='pred')(x, y).shape==(4,32,32)
    ours = Captum(trained.model, IntegratedGradients, scale=False, n_steps=5, chunk=2)(x, y)
    theirs = IntegratedGradients(trained.model.eval()).attribute(x, target=y, n_steps=5).mean(1)
    torch.testing.assert_close(ours, theirs.float(), atol=1e-6, rtol=1e-4)

@pytest.mark.parametrize('layer,words', [
    ('5x','No layer is called'), (nn.Linear(2,2),'is not part of this'), ('7','is not on a grid over the image')])
def test_wrong_layer_gets_a_sentence(trained, batch, layer, words):
    with pytest.raises(ValueError, match=words): GradCAM(trained.model, layer=layer)(*batch)

def test_compiled_and_distributed(trained, batch, tmp_path):
    "Hooks do not reach into compiled code; the answer is that of the plain model, and the model stays compiled"
    model,(x,y) = trained.model.eval(),batch
    plain = GradCAM(model)(x, y)
    calls = []
    def backend(gm, inputs):
        calls.append(1)
        return gm.forward
    outside = torch.compile(model, backend=backend)
    inside = deepcopy(model)
    inside[4].compile(backend=backend)
    for m in (outside,inside):
        with torch.no_grad(): m(x)
        compiled = len(calls)
        for how in (GradCAM, partial(GradCAM, layer='4')): torch.testing.assert_close(how(m)(x, y), plain)
        assert len(calls)==compiled
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try: torch.testing.assert_close(GradCAM(nn.parallel.DistributedDataParallel(deepcopy(model)))(x, y), plain)
    finally: torch.distributed.destroy_process_group()
    torch.testing.assert_close(GradCAM(nn.DataParallel(model))(x, y), plain)

@pytest.mark.parametrize('how', [
    GradCAM, EigenGradCAM, AblationCAM, partial(ScoreCAM, channels=8), partial(Captum, method=Saliency)])
def test_autocast_inference_mode_and_channels_last(trained, batch, how):
    (x,y),model = batch,trained.model
    plain = how(model)(x, y)
    close = lambda heat, least=.97: agreement(plain, heat.float())[0].nanmean()>least
    with torch.autocast('cpu', torch.bfloat16): assert close(how(model)(x, y))
    with torch.inference_mode(): torch.testing.assert_close(how(model)(x.clone(), y), plain, atol=1e-4, rtol=1e-3)
    with torch.no_grad(): torch.testing.assert_close(how(model)(x, y), plain, atol=1e-4, rtol=1e-3)
    assert close(
        how(deepcopy(model).to(memory_format=torch.channels_last))(x.contiguous(memory_format=torch.channels_last), y), .9999)
    half = how(deepcopy(model).bfloat16())(x.bfloat16(), y)
    assert half.dtype==torch.float32 and close(half, .95)

def test_casts_made_without_gradients_do_not_stay(trained, batch):
    "Under autocast torch keeps half-precision copies of weights; one made by a CAM has no gradient, and must not be what training uses"
    model,(x,y) = digits_net(),batch
    with torch.autocast('cpu', torch.bfloat16):
        GradCAM(model)(x, y)
        F.cross_entropy(model(x), y).backward()
    assert all(p.grad is not None for p in model.parameters())

def test_in_the_middle_of_gradient_accumulation(trained, batch):
    (x,y),model = batch,digits_net()
    F.cross_entropy(model(x), y).backward()
    before = [p.grad.clone() for p in model.parameters()]
    flags,rng = [p.requires_grad for p in model.parameters()],torch.get_rng_state()
    for how in attributions.values():
        if 'rollout' not in how.__name__.lower() and how is not LeGrad: how(model)(x, y)
    for how in captum_methods: Captum(model, how)(x[:2], y[:2])
    assert all(torch.equal(a, p.grad) for a,p in zip(before, model.parameters()))
    assert flags==[p.requires_grad for p in model.parameters()] and torch.equal(rng, torch.get_rng_state())
    assert (not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())
            and all(m.training for m in model.modules()))

class _Look(Callback):
    "A heatmap between backward and step, of every batch"
    def __init__(self, how): self.how = how
    def after_backward(self): self.seen = self.how(self.model, target='pred')(self.x)

@pytest.mark.parametrize('how', [LayerCAM, partial(AblationCAM, channels=4), partial(Captum, method='GuidedBackprop')])
def test_a_look_at_every_batch_changes_no_training(path, how, weights, same, quiet):
    "With gradient accumulation and dropout: bit for bit the weights of a run without looks"
    def run(*cbs):
        learn = digits_learner(path, cbs=[GradientAccumulation(32), *cbs])
        learn.model.insert(6, nn.Dropout(.3))
        quiet(learn, 'fit_one_cycle', 1, 3e-3)
        return weights(learn)
    assert same(run(), run(_Look(how)))

@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_on_a_gpu_and_under_amp(trained, batch, dtype):
    plain = GradCAM(trained.model)(*batch)
    model,(x,y) = deepcopy(trained.model).cuda(),(o.cuda() for o in batch)
    for how in (GradCAM, EigenGradCAM, ScoreCAM, AblationCAM, partial(Captum, method=Saliency)):
        exact = how(model)(x, y)
        assert exact.is_cuda
        with torch.autocast('cuda', dtype): assert agreement(exact, how(model)(x, y))[0].nanmean()>.95
    torch.testing.assert_close(GradCAM(model)(x, y).cpu(), plain, atol=1e-3, rtol=1e-2)
    assert agreement(plain, GradCAM(model, fast=True)(x, y).cpu())[0].nanmean()>.95

@pytest.mark.skipif(half_type('cpu') is None, reason='this processor has no bfloat16')
@pytest.mark.parametrize('net', ['cnn','vit','swin'])
def test_fast_agrees(nets, batch, net):
    """On trained networks, at the resolution of the image: rank correlation .99, top-tenth overlap .95

    A step asks for itself whether it holds."""
    (model,layer,_),(x,y) = nets[net],batch
    slow,fast = (resize_heat(GradCAM(model, layer, target='pred', fast=o)(x), (32,32)) for o in (False,True))
    rank,iou = agreement(slow, fast)
    holds = rank.nanmean()>=.99 and iou.nanmean()>=.95
    assert holds==fast_agrees(GradCAM(model, layer, target='pred'), x)
    if net=='cnn': assert holds
    assert rank.nanmean()>.9

def test_fast_agrees_says_no(trained, batch):
    assert not fast_agrees(lambda xb,yb: xb.mean(1), *batch)
    assert not fast_agrees(Captum(trained.model, Saliency), *batch)
    class Rough(GradCAM):
        def heat(self, act, grad): return super().heat(act, grad)*(act.roll(1, 2).sum(1) if self.fast else 1)
    attr = Rough(trained.model)
    assert not fast_agrees(attr, *batch) and attr.fast is False
    if half_type('cpu'):
        assert [fast_agrees(GradCAM(trained.model), *batch, rank=r, iou=i) for r,i in ((-1,0),(1.1,0),(-1,1.1))]==[True,False,False]

@pytest.mark.parametrize('how', ['ScoreCAM','AblationCAM'])
def test_channels_that_matter(trained, batch, how):
    "All channels are the same as no limit; a quarter of them gives most of the map"
    how = attributions[how]
    full = how(trained.model)(*batch)
    torch.testing.assert_close(how(trained.model, channels=64)(*batch), full, atol=1e-3, rtol=1e-3)
    assert agreement(how(trained.model, channels=16)(*batch), full)[0].nanmean()>.95

def test_ablation_of_a_layer_with_a_way_around_it(batch):
    "Densely connected: what comes before the layer is concatenated with what comes after it"
    class Dense(nn.Module):
        def __init__(self, cat):
            super().__init__()
            self.a,self.b,self.head,self.cat = nn.Conv2d(3,5,3,padding=1),nn.Conv2d(5,5,3,padding=1),nn.Linear(10 if cat else 5,4),cat
        def forward(self, x):
            a = self.a(x).tanh()
            b = self.b(a)
            return self.head((torch.cat([a,b], 1) if self.cat else a+b).relu().mean((2,3)))
    x = batch[0][:3]
    for cat in (True,False):
        model = Dense(cat).eval()
        heat = AblationCAM(model, 'b', target=1, scale=False)(x)
        with torch.no_grad():
            a = model.a(x).tanh()
            b = model.b(a)
            score = lambda b: model.head((torch.cat([a,b], 1) if cat else a+b).relu().mean((2,3)))[:,1]
            w = torch.stack([score(b)-score(b*(torch.arange(5)!=k)[:,None,None]) for k in range(5)], 1)
        torch.testing.assert_close(heat, (w[...,None,None]*b).sum(1).relu(), atol=1e-5, rtol=1e-4)

@pytest.mark.parametrize('net', ['vit','swin'])
def test_ablation_on_tokens(nets, batch, net):
    model,layer,read = nets[net]
    x = batch[0][:2]
    heat = AblationCAM(model, layer, target=1, scale=False)(x)
    acts,w = [],[]
    def run(k):
        def hook(m, i, o):
            acts[:] = [o]
            return o*(torch.arange(o.shape[-1])!=k)
        h = model.get_submodule(layer).register_forward_hook(hook)
        with torch.no_grad(): out = model(x)[:,1]
        h.remove()
        return out
    model.eval()
    w = torch.stack([run(-1)-run(k) for k in range(48)], 1)
    torch.testing.assert_close(heat, (w[...,None,None]*read(acts[0])).sum(1).relu(), atol=1e-4, rtol=1e-3)

class OwnViT(nn.Module):
    "The same transformer, its attention written in one of the ways in which people write it"
    def __init__(self, how):
        super().__init__()
        torch.manual_seed(0)
        self.how,self.stem,self.head = how,nn.Conv2d(3,16,8,8),nn.Linear(16,5)
        self.blocks = nn.ModuleList([nn.TransformerEncoderLayer(16, 2, 32, 0., batch_first=True, norm_first=True) for _ in range(2)])
        if how!='layer':
            for i,b in enumerate(self.blocks): self.blocks[i] = OwnBlock(b, how)
    def forward(self, x):
        x = self.stem(x).flatten(2).transpose(1,2)
        for b in self.blocks: x = b(x)
        return self.head(x.mean(1))

class OwnBlock(nn.Module):
    def __init__(self, b, how):
        super().__init__()
        self.b,self.how = b,how
    def attend(self, x):
        a = self.b.self_attn
        if self.how=='mha': return a(x, x, x)[0]
        if self.how=='mha without weights': return a(x, x, x, need_weights=False)[0]
        q,k,v = (o.unflatten(2, (2,8)).transpose(1,2) for o in F.linear(x, a.in_proj_weight, a.in_proj_bias).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v) if self.how=='fused' else F.softmax(q@k.mT/8**.5, dim=-1)@v
        return a.out_proj(y.transpose(1,2).flatten(2))
    def forward(self, x):
        x = x + self.attend(self.b.norm1(x))
        return x + self.b._ff_block(self.b.norm2(x))

@pytest.mark.parametrize('how', ['layer','mha','mha without weights','fused'])
@pytest.mark.parametrize('method', [AttentionRollout, LeGrad])
def test_attention_is_caught_however_it_is_written(method, how):
    x = torch.rand(3,3,32,48)
    plain,other = OwnViT('softmax').eval(),OwnViT(how).eval()
    torch.testing.assert_close(plain(x), other(x), atol=1e-5, rtol=1e-4)
    a,b = (method(o, target=1, scale=False)(x) for o in (plain,other))
    assert a.shape==(3,4,6) and a.std()>0
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)

def test_a_method_that_calls_backward_adds_to_no_gradient(trained, batch):
    class Backward:
        def __init__(self, model): self.model = model
        def attribute(self, x, additional_forward_args):
            self.model(x, *additional_forward_args).sum().backward()
            return x.grad
    (x,y),model = batch,digits_net()
    F.cross_entropy(model(x), y).backward()
    before = [p.grad.clone() for p in model.parameters()]
    heat = Captum(model, Backward, scale=False)(x, y)
    torch.testing.assert_close(heat, Captum(model, lambda m: Saliency(m), scale=False, abs=False)(x, y))
    assert all(torch.equal(a, p.grad) for a,p in zip(before, model.parameters()))

def test_windows_are_no_grid():
    for o in find_layers(timm.create_model('maxvit_pico_rw_256', img_size=(256,256)), torch.randn(2,3,256,256)):
        assert o.shape[0]==1

def test_rollout_reads_the_token_that_the_head_reads():
    for kw,n in ((dict(), 1), (dict(global_pool='avg'), 64),
                 (dict(class_token=False, global_pool='avg'), 64), (dict(reg_tokens=2), 1)):
        attr = AttentionRollout(small_vit(**kw))
        assert attr(torch.rand(2,3,32,32)).shape==(2,8,8) and attr.read.sum()==n

@pytest.mark.parametrize('model,words', [
    (small_swin, 'do not attend over all tokens'),
    (lambda: timm.create_model('resnet10t'), 'do not attend over all'),
    (lambda: timm.create_model('xcit_nano_12_p16_224'), 'do not attend over all'),
    (lambda: timm.create_model('levit_128s'), 'do not attend over all'),
    (lambda: timm.create_model('coatnet_pico_rw_224'), 'different numbers of tokens'),
    (lambda: timm.create_model('pvt_v2_b0'), 'do not attend over all')])
def test_models_that_rollout_is_not_for(model, words):
    model = model()
    x = torch.rand(1,3,*((32,32) if isinstance(model, timm.models.SwinTransformer) else (224,224)))
    for how in (AttentionRollout, LeGrad):
        with pytest.raises(ValueError, match=words): how(model, target='pred')(x)
    with pytest.raises(ValueError, match='leave `layer` out'): LeGrad(model, layer='x')

@pytest.mark.limit(120)
@pytest.mark.parametrize('how', [o for o in [*attributions, *captum_methods] if o not in ('AttentionRollout','LeGrad','GradRollout')])
def test_maps_depend_on_the_model(trained, batch, how):
    """Adebayo et al. 2018: a map of a network that has forgotten everything should not be that of the trained one

    All of them change; the methods that sum positive parts of ever-positive activations
    (GradCAMPlusPlus, LayerCAM, ScoreCAM) change least, as the table in attribution/03_cams says."""
    x,idx = batch[0],trained.model.eval()(batch[0]).argmax(1)
    torch.manual_seed(0)
    fresh = deepcopy(trained.model)
    for m in fresh.modules():
        if hasattr(m, 'reset_parameters'): m.reset_parameters()
    maps = [pixels(as_attribution(how)(o, target=idx)(x)) for o in (trained.model,fresh)]
    assert agreement(*maps)[0].nanmean()<.8

@pytest.mark.parametrize('how', [o for o in attributions if o not in ('AttentionRollout','LeGrad','GradRollout')]
                                +['IntegratedGradients','GuidedGradCam','Occlusion'])
def test_the_planted_shortcut_is_hit(trained, how):
    files = trained.dls.valid_ds.items[:48]
    patch = torch.from_numpy(regions(trained.dls.path, files)['shortcut'])
    heat,_ = heat_of(as_attribution(how)(trained.model, target='pred'), whole_dl(trained.dls, files))
    assert points_at(heat, patch).float().mean()>.6 # the patch covers .06 of the image

def test_single_output_and_grey(batch):
    model = nn.Sequential(nn.Conv2d(1,4,3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4,1))
    assert LayerCAM(model, target='pred')(batch[0][:,:1]).shape[0]==len(batch[0])

def test_layer_without_a_batch():
    assert find_layer(timm.create_model('resnet10t')).grid==(7,7)
    assert find_layer(digits_net()).grid==(56,56)

def test_a_head_of_zeros_can_still_be_looked_at(batch):
    net = digits_net()
    nn.init.zeros_(net[-1].weight)
    assert find_layer(net, batch[0]).name=='4'

@pytest.mark.parametrize('last', [nn.LogSoftmax(1), nn.Softmax(1)])
def test_models_that_end_in_a_softmax(trained, batch, last):
    assert find_layer(nn.Sequential(trained.model, last), batch[0]).name=='0.4'

def test_an_attribution_does_not_keep_its_model_alive():
    import gc, weakref
    net = digits_net()
    ref = weakref.ref(net)
    GradCAM(net, target='pred')(torch.rand(2,3,32,32))
    as_attribution('LayerCAM')(net)
    as_attribution(lambda xb,yb: net(xb))
    del net
    gc.collect()
    assert ref() is None

@pytest.mark.parametrize('make,words', [
    (lambda m: GradCAM(lambda x: x), 'a torch `nn.Module`'),
    (lambda m: GradCAM(m, fast='yes'), "fast='yes' should be"),
    (lambda m: GradCAM(m, layer=3, target='pred')(torch.rand(1,3,32,32)), 'layer=3 should be'),
    (lambda m: GradCAM(m, target='pred')((torch.rand(1,3,32,32)*255).byte()), 'images are torch.uint8'),
    (lambda m: ProxyAttention(fast='yes'), "fast='yes' should be")])
def test_wrong_types_get_a_sentence(trained, make, words):
    with pytest.raises(TypeError, match=words): make(trained.model)

@pytest.mark.parametrize('kw,words', [
    (dict(attribution='LeGrad'), 'choose a CAM'), (dict(fast=True, attribution='Saliency'), 'has no half precision')])
def test_a_method_that_is_not_for_the_model_stops_a_fit_at_once(path, kw, words):
    learn = digits_learner(path, cbs=ProxyAttention(steps=[1,'p',1], **kw))
    with pytest.raises((ValueError,TypeError), match=words), learn.no_bar(), learn.no_logging(): learn.fit(2)

@pytest.mark.parametrize('kw', [
    dict(attribution='LeGrad'), dict(attribution='AttentionRollout'),
    dict(attribution='HiResCAM', layer=['blocks.0','blocks.1.norm1'])])
def test_a_transformer_trains_on_proxies(path, quiet, kw):
    learn = digits_learner(path, cbs=ProxyAttention(steps=[1,'p',1], select='all', **kw))
    learn.model = small_vit(depth=2)
    quiet(learn, 'fit', 2, 1e-3)
    assert learn.proxy_attention.history.made.item()>200

@pytest.mark.skipif(half_type('cpu') is None, reason='this processor has no bfloat16')
def test_a_step_goes_fast_where_it_agrees(path, quiet):
    "Asked of the first images of a step with many; the log says it"
    methods = []
    class Rough(LayerCAM):
        def heat(self, act, grad): return super().heat(act, grad)*(act.roll(1, 2).sum(1) if self.fast else 1)
    for how,kw in ((LayerCAM,{}), (LayerCAM,dict(fast=False)), (LayerCAM,dict(share=20)),
                   (LayerCAM,dict(share=20, fast=True)), (Rough,{})):
        learn = digits_learner(path, cbs=ProxyAttention(steps=[1,'p',1], attribution=how, **(dict(share=1.)|kw)))
        quiet(learn, 'fit', 2, 1e-3)
        methods.append('half precision' in learn.proxy_attention.log.method[0])
    assert methods==[True,False,False,True,False]

class Frozen(nn.Module):
    "Features that nobody may train"
    def __init__(self):
        super().__init__()
        self.body,self.head = nn.Sequential(*digits_net()[:5]),nn.Sequential(AdaptiveAvgPool(), Flatten(), nn.Linear(64,10))
    def forward(self, x):
        with torch.no_grad(): x = self.body(x)
        return self.head(x)

@pytest.mark.parametrize('how', ['LayerCAM','GradCAM','GradCAMPlusPlus'])
def test_a_body_under_no_grad(few, how):
    "Heat as if gradients flowed, and no gradient is left anywhere"
    torch.manual_seed(0)
    model = Frozen().eval()
    x = torch.stack([image2tensor(PILImage.create(f))/255 for f in get_image_files(few/'valid').sorted()[:6]])
    cam = globals()[how]
    heat = cam(model, layer='body', target='pred')(x)
    free = nn.Sequential(model.body, model.head).eval()
    assert torch.allclose(heat, cam(free, layer='0', target='pred')(x), atol=1e-6) and (heat.amax((1,2))>0).any()
    assert all(p.grad is None for p in model.parameters())
    dls = ImageDataLoaders.from_folder(few, train='train', valid='valid', bs=16, num_workers=0)
    learn = Learner(dls, Frozen(), cbs=ProxyAttention(attribution=how, start=1))
    with learn.no_bar(), learn.no_logging(): learn.fit(2, 1e-3)
    assert len(learn.proxy_attention.store)

def test_an_own_attribution_may_ask_autograd(few, quiet):
    "In a step and in a look, outside of `no_grad`"
    def gradients(xb, yb):
        x = xb.detach().clone().requires_grad_()
        out = learn.model(x)
        return torch.autograd.grad(out.amax(1).sum(), x)[0].abs().sum(1)
    learn = digits_learner(few, cbs=ProxyAttention(attribution=gradients, start=1))
    quiet(learn, 'fit', 2, 1e-3)
    assert len(learn.proxy_attention.store)
    assert heat_on(learn, learn.dls.valid_ds.items[:2], gradients).shape[0]==2

def test_a_cam_registers_itself(few, quiet):
    "One class, and its name is known in the callback, in a look, on the command line"
    from proxy_attention.attribution.cams import attributions
    class Brightest(CAM):
        "The largest channel"
        def heat(self, act, grad): return act.amax(1)
    assert attributions['Brightest'] is Brightest
    try:
        learn = quiet(digits_learner(few, cbs=ProxyAttention(attribution='Brightest', start=1)), 'fit', 2, 1e-3)
        assert len(learn.proxy_attention.store) and heat_on(learn, learn.dls.valid_ds.items[:2], 'Brightest').shape[0]==2
    finally: attributions.pop('Brightest')

def test_one_default_of_target_and_attribution(few, quiet):
    "What a step saw, a look shows, the probe swaps and the metrics measure: the same heat, bit for bit"
    from proxy_attention.attribution.methods import default_attribution, default_target
    from proxy_attention.proxy.step import Settings, step
    learn = quiet(digits_learner(few), 'fit_one_cycle', 2, 3e-3)
    files = learn.dls.train_ds.items[:8]
    found = step(learn, Settings(select='all', fast=False))
    rows = heat_on(learn, files)
    assert torch.allclose(found.heat[:8].half().float(), rows.half().float(), atol=2e-3)
    for f in (ProxyAttention, probe, AttentionOn, explanation_scores, heat_on, show_where, explain_images, randomised, HeatDrift):
        for k,usual in (('target',default_target),('attribution',default_attribution)):
            params = inspect.signature(f).parameters
            if k in params and params[k].default is not inspect._empty: assert params[k].default==usual, (f, k)

def test_a_layer_is_found_once_per_model_and_not_held():
    import proxy_attention.attribution.cams as cams
    model,seen = digits_net().eval(),[]
    model.register_forward_hook(lambda m, args, out: seen.append(len(args[0])))
    x = torch.rand(16,3,32,32)
    for _ in range(3):
        with GradCAM(model, target='pred') as attr: attr(x)
    finding = [n for n in seen if n==1]
    assert len(seen)-len(finding)<=3+1 and len(finding)<=2, f'batches of {seen}: found from one image, once'
    ref = weakref.ref(model)
    del model, attr
    gc.collect()
    assert ref() is None

@pytest.mark.parametrize('how', ['GradCAM','LayerCAM','Saliency'])
@pytest.mark.parametrize('target', ['label','tensor'])
def test_labels_from_inference_mode(how, target):
    "Labels and indices made there can be explained, as images can"
    x,y,net = torch.randn(2,3,16,16),torch.tensor([1,2]),small_net()
    made = as_attribution(how)
    should = made(net, target='label')(x, y)
    with torch.inference_mode():
        i = y+0
        heat = made(net, target='label')(x+0, i) if target=='label' else made(net, target=i)(x+0)
    assert i.is_inference() and torch.equal(heat, should)

def test_a_captum_method_finds_its_layer_for_each_image_size():
    "The layer of 64×64 images is not kept for those of 224×224; one that is given is"
    net = timm.create_model('resnet10t', num_classes=4).eval()
    xs = [torch.randn(1,3,o,o) for o in (64,224)]
    layers = [find_layer(net, x).module for x in xs]
    attr = as_attribution('GuidedGradCam')(net, target='pred')
    found = []
    for x in xs: found.append(attr(x) is None or attr.layer)
    assert layers[0] is not layers[1] and found[0] is layers[0] and found[1] is layers[1]
    asked = as_attribution('GuidedGradCam')(net, layer='layer2', target='pred')
    for x in xs: assert asked(x) is None or asked.layer is net.layer2

def test_a_suspect_is_the_whole_module():
    "Also if a part of it is called `model`, as in many wrappers"
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.model,self.head = small_net(n_out=8),nn.Linear(8, 2)
        def forward(self, x): return self.head(self.model(x))
    net,x = Wrapped().eval(),torch.rand(2,3,16,16)
    suspect = Suspect(net, 'GradCAM')
    assert isinstance(suspect.model, Wrapped)
    assert torch.equal(suspect(small_net(), target=1)(x), GradCAM(net, target=1)(x))

def test_which_targets_ask_for_labels():
    from proxy_attention.attribution.targets import asks_labels
    for o in ('label', Margin('label'), Region(of='label')): assert asks_labels(o)
    for o in ('pred', 'margin', 'finer', 3, torch.tensor([1,2]), Index(1), Margin(), Region(2), lambda out,yb: out[:,0]):
        assert not asks_labels(o)
