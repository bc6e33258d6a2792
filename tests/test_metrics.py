"Scores of explanations: against other packages, by hand, and on a model that is known to read one corner"
from contextlib import nullcontext
import pytest
from fastai.vision.all import *
from proxy_attention.all import *

class Reader(nn.Module):
    "Two classes: is the top left quarter bright? It sees nothing else"
    def forward(self, x):
        score = 8*(x[...,:x.shape[-2]//2,:x.shape[-1]//2].mean((1,2,3))-.5)
        return torch.stack([score, -score], 1)

def corner(n=1, side=8):
    m = torch.zeros(n, side, side, dtype=torch.bool)
    m[:,:side//2,:side//2] = True
    return m

@pytest.fixture
def seen():
    "Images, heat and classes, and a model with an opinion"
    g = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3,8,3,padding=1), nn.ReLU(), nn.Conv2d(8,8,3,padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8*256,5)).eval()
    nn.init.normal_(model[-1].weight, std=.3)
    x = torch.rand(6,3,16,16, generator=g)
    return model, x, normalize_heat(torch.rand(6,4,4, generator=g)), model(x).argmax(1)

# against other packages, on the same inputs

class Extractor:
    "What torchcam's metrics ask of a CAM"
    def __init__(self, model, heat): self.model,self.heat = model,heat
    def __call__(self, *args, **kwargs): return [self.heat]
    def fuse_cams(self, cams): return cams[0]
    def _hooks_off(self): return nullcontext()

def test_average_drop_and_increase_are_torchcams(seen):
    from torchcam.metrics import ClassificationMetric
    model,x,heat,y = seen
    theirs = ClassificationMetric(Extractor(model, heat), partial(torch.softmax, dim=-1))
    theirs.update(x, y.tolist())
    ours = dict(avg_drop=average_drop(model, x, heat, y).mean().item(), conf_increase=increase(model, x, heat, y).mean().item())
    assert ours==pytest.approx(theirs.summary(), abs=1e-5) and ours['avg_drop']>.01

@pytest.mark.parametrize('fill', ['mean','blur','zero'])
def test_deletion_and_insertion_are_torchcams(seen, fill):
    from torchcam.metrics import DeletionInsertionMetric
    model,x,heat,y = seen
    theirs = DeletionInsertionMetric(Extractor(model, heat), partial(torch.softmax, dim=-1), steps=16, baseline=fills[fill])
    theirs.update(x, y.tolist())
    ours = dict(deletion_auc=deletion(model, x, heat, y, 16, fill).mean().item(), insertion_auc=insertion(model, x, heat, y, 16, fill).mean().item())
    assert ours==pytest.approx(theirs.summary(), abs=1e-5) and abs(ours['deletion_auc']-ours['insertion_auc'])>1e-4

def softmax_targets(y):
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget
    return [ClassifierOutputSoftmaxTarget(int(o)) for o in y]

def test_drop_and_increase_are_pytorch_grad_cams(seen):
    "It does not divide the drop by the probability"
    from pytorch_grad_cam.metrics.cam_mult_image import DropInConfidence, IncreaseInConfidence
    model,x,heat,y = seen
    over = resize_heat(heat, x.shape[-2:]).numpy()
    p = model(x).softmax(1).gather(1, y[:,None])[:,0].detach()
    test_close(average_drop(model, x, heat, y)*p, torch.from_numpy(DropInConfidence()(x, over, softmax_targets(y), model)), eps=1e-6)
    test_eq(increase(model, x, heat, y), torch.from_numpy(IncreaseInConfidence()(x, over, softmax_targets(y), model)))

@pytest.mark.parametrize('share', [.1,.6,.97])
def test_imputed_pixels_are_pytorch_grad_cams(share):
    from pytorch_grad_cam.metrics.road import NoisyLinearImputer
    g = torch.Generator().manual_seed(1)
    x,mask = torch.rand(3,3,20,28, generator=g), resize_heat(torch.rand(3,4,5, generator=g), (20,28))
    mask = area_budget(mask, share)
    theirs = torch.stack([NoisyLinearImputer(noise=0)(i, (~m).float()) for i,m in zip(x, mask)])
    test_close(impute(x, mask, noise=0, tol=1e-5), theirs, eps=1e-4)
    test_close(impute(x, mask, noise=0), theirs, eps=2e-2)
    kept = ~mask[:,None].expand_as(x)
    assert torch.equal(impute(x, mask)[kept], x[kept]) # to the bit, and no noise there

def test_road_is_pytorch_grad_cams(seen, monkeypatch):
    "Where both take away the same number of pixels: its percentiles are of the values, our shares of the pixels"
    from pytorch_grad_cam.metrics import road as theirs
    monkeypatch.setattr(theirs.NoisyLinearImputer, '__init__', lambda self, noise=0, weighting=None: setattr(self, 'noise', 0))
    model,x,_,y = seen
    heat = torch.rand(6,16,16, generator=torch.Generator().manual_seed(3)) # no two pixels alike
    ref = theirs.ROADCombined([25,50,75])(x, heat.numpy(), softmax_targets(y), model)
    test_close(road(model, x, heat, y, shares=(.25,.5,.75), noise=0), torch.from_numpy(ref), eps=1e-3)
    assert abs(ref).max()>.01

def test_masks_are_quantus_s(seen):
    "Where Quantus is installed; it takes absolute values and scales, unless told not to, and all of the hottest pixels, not the first"
    quantus = pytest.importorskip('quantus')
    model,x,heat,y = seen
    mask = torch.rand(6,16,16, generator=torch.Generator().manual_seed(2))>.6
    over = resize_heat(heat, (16,16))
    how = dict(model=model, x_batch=x.numpy(), y_batch=y.numpy(), a_batch=over[:,None].numpy(), s_batch=mask[:,None].numpy(), channel_first=True)
    plain = dict(abs=False, normalise=False, disable_warnings=True, display_progressbar=False)
    test_close(energy(heat, mask), torch.tensor(quantus.RelevanceMassAccuracy(**plain)(**how)).float(), eps=1e-5)
    test_eq(pointing_game(heat, mask).tolist(), [float(o) for o in quantus.PointingGame(**plain)(**how)])
    idxs = (over[0].flatten()>over[0].median()).nonzero()[:,0].numpy()
    theirs = quantus.perturb_func.noisy_linear_imputation(x[0].numpy(), idxs, noise=0)
    test_close(impute(x[:1], over[:1]>over[0].median(), noise=0, tol=1e-5)[0], torch.from_numpy(theirs), eps=1e-4)

# by hand

def test_energy_and_iou_by_hand():
    heat = torch.zeros(3,4,4)
    heat[0,0,0],heat[0,3,3] = 3,1; heat[1,:2] = 1; heat[2,:2,:2] = 1
    mask = corner(3, 4)
    assert energy(heat, mask).tolist()==[.75,.5,1] and iou(heat, mask).tolist()==[.25,.5,1] and pointing_game(heat, mask).tolist()==[1,1,1]
    assert iou(heat, mask, threshold=.2).tolist()==pytest.approx([.2,.5,1]) # 0.2 of the maximum lets the 1 beside the 3 in
    assert iou(heat[[0,2]], mask[:2], share=1/16).tolist()==[.25]*2

def test_negative_heat_is_no_heat():
    heat = -torch.ones(1,4,4)
    heat[0,0,0] = 1
    assert energy(heat, corner(1,4))==1

def test_best_iou_is_the_best_of_all_thresholds():
    g = torch.Generator().manual_seed(0)
    for levels in (3,1000): # ties or none
        heat = (torch.rand(20,9,7, generator=g)*levels).round()/levels
        mask = torch.rand(20,9,7, generator=g)>.7
        every = torch.stack([iou(heat, mask, threshold=t) for t in torch.cat([torch.zeros(1), normalize_heat(heat).unique()[:-1]]).tolist()])
        test_close(best_iou(heat, mask), every.amax(0), eps=1e-6)

def test_pointing_tolerance_is_a_disc():
    g = torch.Generator().manual_seed(0)
    heat,mask = torch.rand(30,16,12, generator=g), torch.rand(30,16,12, generator=g)>.98
    mask[:,0,0] = True
    for r in (0,1,2.5,6):
        ref = []
        for h,m in zip(heat, mask):
            y,x = divmod(h.argmax().item(), 12)
            ref.append(float(((m.nonzero()-torch.tensor([y,x]))**2).sum(1).min()<=r*r))
        test_eq(pointing_game(heat, mask, tolerance=r).tolist(), ref)

def test_deletion_by_hand():
    "Two of four pixels are read; taking them away first halves the score each time"
    f = lambda x: torch.logit(x.flatten(1).mean(1)[:,None].clamp(1e-6, 1-1e-6)) # the probability is the mean of the pixels
    x,y = torch.tensor([[[[.8,.8],[0.,0.]]]]), torch.ones(1)
    heat = torch.tensor([[[4.,3.],[2.,1.]]])
    share,p = removal_curve(f, x, heat, y, steps=4, fill='zero')
    test_close(p, tensor([[.4,.2,0,0,0]]), eps=1e-5)
    test_close(deletion(f, x, heat, y, 4, 'zero'), tensor([(.4/2+.2)/4]), eps=1e-5)
    test_close(insertion(f, x, heat, y, 4, 'zero'), tensor([(.2+.4+.4+.4/2)/4]), eps=1e-5)
    test_close(deletion(f, x, heat.flip((1,2)), y, 4, 'zero'), tensor([(.4/2+.4+.4+.2)/4]), eps=1e-5)
    test_close(deletion(f, x, heat, 1-y, 4, 'zero'), tensor([1-(.4/2+.2)/4]), eps=1e-5) # of a single output, the other side

def test_who_reads_a_corner():
    "The map that is right beats its opposite and the controls, by every metric and with every fill that removes the evidence"
    g,model = torch.Generator().manual_seed(0), Reader().eval()
    x,y,right = torch.zeros(8,1,16,16), torch.zeros(8).long(), corner(8, 16).float()
    x[:,:,:8,:8] = 1
    maps = dict(right=right, wrong=1-right, random=random_heat(x, rng=g), centre=centre_heat(x))
    for k,f in model_metrics.items():
        got = {m:f(model, x, h, y).mean().item() for m,h in maps.items()}
        sign = -1 if k in ('average_drop','deletion') else 1
        if k=='increase': assert got['right']==0 # sure of the whole image, it cannot rise
        else: assert all(sign*got['right']>sign*o for m,o in got.items() if m!='right'), (k,got)
    for fill in ('zero','mean','min','noise','shuffle',lambda img: torch.zeros_like(img)):
        assert deletion(model, x, right, y, fill=fill).mean()<deletion(model, x, 1-right, y, fill=fill).mean()

# what is refused, and what has no score

@pytest.mark.parametrize('heat', [torch.zeros(1,4,4), torch.full((1,4,4), torch.nan), torch.full((1,4,4), torch.inf), torch.full((1,4,4), .7)])
def test_a_map_that_says_nothing_has_no_score(heat):
    both = torch.cat([heat, torch.eye(4)[None]])
    x,y,model = torch.rand(2,3,8,8), torch.zeros(2).long(), Reader().eval()
    for f in mask_metrics.values(): assert f(both, corner(2)).isnan().tolist()==[True,False]
    for f in model_metrics.values(): assert f(model, x, both, y).isnan().tolist()==[True,False]

def test_wrong_input_is_refused():
    x,y,heat,model = torch.rand(2,3,8,8), torch.zeros(2).long(), torch.rand(2,4,4), Reader().eval()
    with pytest.raises(TypeError, match='The mask is ndarray'): energy(heat, np.zeros((2,8,8), bool))
    with pytest.raises(ValueError, match=r'one map and one mask an image'): energy(heat, corner(3))
    with pytest.raises(ValueError, match='one mask an image'): energy(heat[0], corner(1)[0])
    with pytest.raises(ValueError, match='there are 3 classes'): deletion(model, x, heat, torch.zeros(3).long())
    with pytest.raises(ValueError, match='training mode'): road(Reader(), x, heat, y)
    with pytest.raises(TypeError, match='needs `heat`'): deletion(model, x, heat, y, fill='blend')
    with pytest.raises(TypeError, match='needs `data`'): deletion(model, x, heat, y, fill='dataset_mean')
    with pytest.raises(ValueError, match="did you mean 'mean'"): deletion(model, x, heat, y, fill='meen')
    with pytest.raises(ValueError, match='only one'): deletion(model, x[:1], heat[:1], y[:1], fill='swap')
    with pytest.raises(ValueError, match='steps=65 should be a number from 1 to 64'): insertion(model, x, heat, y, steps=65)
    with pytest.raises(ValueError, match='share=1.0'): road(model, x, heat, y, shares=[1.])
    with pytest.raises(ValueError, match='nothing left'): impute(x, torch.ones(2,8,8, dtype=torch.bool))
    with pytest.raises(ValueError, match='threshold=1.5'): iou(heat, corner(2), threshold=1.5)
    with pytest.raises(TypeError, match='returns a tuple'): deletion(lambda x: (x,), x, heat, y)

def test_nothing_is_disturbed(seen):
    model,x,heat,y = seen
    before,state = torch.get_rng_state(), {k:v.clone() for k,v in model.state_dict().items()}
    x.requires_grad_()
    for f in model_metrics.values(): assert not f(model, x, heat, y).requires_grad
    assert torch.equal(before, torch.get_rng_state()) and x.grad is None and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, state[k]) for k,v in model.state_dict().items())
    for f in model_metrics.values(): test_eq(f(model, x, heat, y), f(model, TensorImage(x.detach()), heat, TensorCategory(y))) # and again the same, of fastai's types

def test_scores_do_not_depend_on_the_batch(seen):
    model,x,heat,y = seen
    for k,f in model_metrics.items():
        one = torch.cat([f(model, *(o[i:i+1] for o in (x,heat,y)), **(dict(noise=0) if k=='road' else {})) for i in range(len(x))])
        test_close(f(model, x, heat, y, **(dict(noise=0) if k=='road' else {})), one, eps=1e-3)

@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
def test_the_same_on_a_gpu(seen):
    model,x,heat,y = seen
    for f in model_metrics.values(): test_close(f(deepcopy(model).cuda(), x.cuda(), heat, y).cpu(), f(model, x, heat, y), eps=1e-3)
    for f in mask_metrics.values(): test_close(f(heat.cuda(), corner(6,16).cuda()).cpu(), f(heat, corner(6,16)), eps=1e-4)
