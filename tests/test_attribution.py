"Oracles: captum and torchcam on a trained network; what must not break, and what must be left alone"
import pytest, torch, timm, torchcam.methods
from captum.attr import InputXGradient, IntegratedGradients, GuidedGradCam, LayerGradCam, Saliency
from fastai.vision.all import *
from proxy_attention.all import *

@pytest.fixture
def batch(trained): 
    x,y = trained.dls.valid.one_batch()
    return x.as_subclass(Tensor), y.as_subclass(Tensor)

@pytest.mark.parametrize('how,peer', [(GradCAM,'GradCAM'), (XGradCAM,'XGradCAM'), (LayerCAM,'LayerCAM')])
def test_agrees_with_torchcam(trained, batch, how, peer):
    "torchcam scales like we do; where its map is empty it has NaN, and ours is empty"
    model,(x,y) = trained.model.eval(), batch
    ours = how(model, layer='4')(x, y)
    with getattr(torchcam.methods, peer)(model, '4') as cam:
        x = x.clone().requires_grad_()
        theirs = torch.stack([cam(int(o), model(i[None]))[0][0] for i,o in zip(x, y)])
    torch.testing.assert_close(ours, theirs.nan_to_num(0).detach(), atol=1e-4, rtol=1e-3)

def test_agrees_with_captum(trained, batch):
    model,(x,y) = trained.model.eval(), batch
    torch.testing.assert_close(GradCAM(model, scale=False)(x, y), LayerGradCam(model, model[4]).attribute(x, y, relu_attributions=True)[:,0], atol=1e-6, rtol=1e-4)

@pytest.mark.parametrize('target', ['label','pred','margin'])
def test_targets_agree_with_autograd(trained, batch, target):
    model,(x,y) = trained.model.eval(), batch
    x = x.clone().requires_grad_()
    out = model(x)
    idx = y if target=='label' else out.argmax(1)
    score = out.gather(1, idx[:,None])[:,0]
    if target=='margin': score = torch.stack([o[i]-torch.cat([o[:i],o[i+1:]]).logsumexp(0) for o,i in zip(out, idx)])
    grad, = torch.autograd.grad(score.sum(), x)
    torch.testing.assert_close(Captum(model, Saliency, target=target, scale=False)(x.detach(), y), grad.abs().mean(1), atol=1e-6, rtol=1e-4)

def test_found_layer_is_the_named_one(trained, batch):
    assert torch.equal(GradCAM(trained.model)(*batch), GradCAM(trained.model, layer=trained.model[4])(*batch))

@pytest.mark.parametrize('arch,grid', [('resnet10t',(4,6)), ('efficientnet_lite0',(4,6)), ('mobilenetv3_small_050',(4,6)), ('densenet121',(4,6)), ('vit_tiny_patch16_224',(8,12)), 
                                       ('deit_tiny_distilled_patch16_224',(8,12)), ('convnext_atto',(4,6))])
def test_layer_and_grid_are_found_for_oblong_inputs(arch, grid):
    kw = dict(img_size=(128,192)) if 'it_' in arch else {}
    model = timm.create_model(arch, num_classes=5, **kw).eval()
    layer = find_layer(model, torch.randn(1,3,128,192))
    assert layer.grid==grid, layer
    heat = LayerCAM(model, target='pred', scale=False)(torch.randn(3,3,128,192))
    assert heat.shape==(3,*grid) and torch.isfinite(heat).all()

def test_fastai_bodies(path):
    dls = ImageDataLoaders.from_folder(path, train='train', valid='valid', bs=4, num_workers=0, item_tfms=Resize(64))
    for arch in (resnet18, 'resnet10t', squeezenet1_1):
        model = vision_learner(dls, arch, pretrained=False).model
        assert GradCAM(model, target='pred')(torch.randn(2,3,64,64)).shape[0]==2

def test_frozen_inplace_and_nested_modes(trained, batch):
    model = nn.Sequential(nn.Conv2d(3,8,3,padding=1), nn.ReLU(inplace=True), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8,10)).train()
    model[2].eval()
    for p in model.parameters(): p.requires_grad_(False)
    state = {k:v.clone() for k,v in model.state_dict().items()}
    a = GradCAM(model, scale=False)(*batch)
    ref = LayerGradCam(model.eval(), model[3]).attribute(batch[0].requires_grad_(), batch[1], relu_attributions=True)[:,0]
    torch.testing.assert_close(a, ref.detach(), atol=1e-6, rtol=1e-4)
    assert all(torch.equal(v, state[k]) for k,v in model.state_dict().items())

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

def test_memory_and_hooks_over_many_calls(trained, batch):
    import gc
    attr = GradCAM(trained.model)
    def alive():
        gc.collect()
        return sum(isinstance(o, Tensor) for o in gc.get_objects())
    for _ in range(3): attr(*batch)
    before = alive()
    for _ in range(200): attr(*batch)
    assert alive()<=before+2
    assert not any(m._forward_hooks for m in trained.model.modules())

def test_captum_methods_that_need_more(trained, batch):
    x,y = batch[0][:4],batch[1][:4]
    assert Captum(trained.model, GuidedGradCam, target='pred')(x, y).shape==(4,32,32)
    ours = Captum(trained.model, IntegratedGradients, scale=False, n_steps=5, chunk=2)(x, y)
    theirs = IntegratedGradients(trained.model.eval()).attribute(x, target=y, n_steps=5).mean(1)
    torch.testing.assert_close(ours, theirs.float(), atol=1e-6, rtol=1e-4)

@pytest.mark.parametrize('layer,words', [('5x','No layer is called'), (nn.Linear(2,2),'is not a part of this'), ('7','is no grid over the image')])
def test_wrong_layer_gets_a_sentence(trained, batch, layer, words):
    with pytest.raises(ValueError, match=words): GradCAM(trained.model, layer=layer)(*batch)

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
def test_models_that_end_in_a_softmax(trained, batch, last): assert find_layer(nn.Sequential(trained.model, last), batch[0]).name=='0.4'

def test_an_attribution_does_not_keep_its_model_alive():
    import gc, weakref
    net = digits_net()
    ref = weakref.ref(net)
    GradCAM(net, target='pred')(torch.rand(2,3,32,32)), as_attribution('LayerCAM')(net), as_attribution(lambda xb,yb: net(xb))
    del net
    gc.collect()
    assert ref() is None
