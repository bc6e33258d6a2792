"Scores of explanations: against other packages, by hand, and on a model that is known to read one corner"
from contextlib import nullcontext
import pytest, torch
from fastai.vision.all import *
from proxy_attention.all import *
from proxy_attention.core import keep_rng
from proxy_attention.data.loaders import train_items, whole_dl
from proxy_attention.attribution.heatmap import agreement, normalize_heat, resize_heat
from proxy_attention.attribution.layers import looking_into
from proxy_attention.attribution.targets import Margin, as_target
from proxy_attention.masking.fills import fills
from proxy_attention.masking.rules import area_budget, centre
from proxy_attention.interpret.metrics import average_drop, best_iou, centre_heat, deletion, energy, impute, increase, insertion, iou
from proxy_attention.interpret.metrics import mask_metrics, model_metrics, pointing_game, random_heat, removal_curve, road

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
    model = nn.Sequential(
        nn.Conv2d(3,8,3,padding=1), nn.ReLU(), nn.Conv2d(8,8,3,padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8*256,5)).eval()
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
    from torchcam import metrics
    if not hasattr(metrics, 'DeletionInsertionMetric'): pytest.skip('this torchcam has no such metric; its 0.5 has, and needs Python 3.11')
    model,x,heat,y = seen
    theirs = metrics.DeletionInsertionMetric(Extractor(model, heat), partial(torch.softmax, dim=-1), steps=16, baseline=fills[fill])
    theirs.update(x, y.tolist())
    ours = dict(deletion_auc=deletion(model, x, heat, y, 16, fill).mean().item(),
                insertion_auc=insertion(model, x, heat, y, 16, fill).mean().item())
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
    test_close(average_drop(model, x, heat, y)*p,
               torch.from_numpy(DropInConfidence()(x, over, softmax_targets(y), model)), eps=1e-6)
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

# Quantus asks for opencv-python, which writes over the opencv-python-headless of grad-cam and needs libGL, so it is none of the
# dev_requirements: `pip install --no-deps quantus`, then `pip install cachetools scikit-image`, as `.ci/run` does

def test_masks_are_quantus_s(seen):
    "Where Quantus is installed; it takes absolute values and scales, unless told not to, and all of the hottest pixels, not the first"
    quantus = pytest.importorskip('quantus')
    model,x,heat,y = seen
    mask = torch.rand(6,16,16, generator=torch.Generator().manual_seed(2))>.6
    over = resize_heat(heat, (16,16))
    how = dict(model=model, x_batch=x.numpy(), y_batch=y.numpy(), a_batch=over[:,None].numpy(), s_batch=mask[:,None].numpy(),
               channel_first=True)
    plain = dict(abs=False, normalise=False, disable_warnings=True, display_progressbar=False)
    test_close(energy(heat, mask), torch.tensor(quantus.RelevanceMassAccuracy(**plain)(**how)).float(), eps=1e-5)
    test_eq(pointing_game(heat, mask).tolist(), [float(o) for o in quantus.PointingGame(**plain)(**how)])
    idxs = (over[0].flatten()>over[0].median()).nonzero()[:,0].numpy()
    theirs = quantus.perturb_func.noisy_linear_imputation(x[0].numpy(), idxs, noise=0)
    test_close(impute(x[:1], over[:1]>over[0].median(), noise=0, tol=1e-5)[0], torch.from_numpy(theirs), eps=1e-4)

# by hand

def test_energy_and_iou_by_hand():
    heat = torch.zeros(3,4,4)
    heat[0,0,0],heat[0,3,3] = 3,1
    heat[1,:2] = 1
    heat[2,:2,:2] = 1
    mask = corner(3, 4)
    assert (energy(heat, mask).tolist()==[.75,.5,1] and iou(heat, mask).tolist()==[.25,.5,1]
            and pointing_game(heat, mask).tolist()==[1,1,1])
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
        every = torch.stack([
            iou(heat, mask, threshold=t) for t in torch.cat([torch.zeros(1), normalize_heat(heat).unique()[:-1]]).tolist()])
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

def test_a_class_that_is_out_of_the_question_has_nothing_to_lose():
    f,x,y = lambda x: x.mean((2,3))*1000, torch.ones(1,2,4,4), torch.ones(1).long()
    x[:,1] = -1
    assert average_drop(f, x, torch.eye(4)[None], y)==0 and increase(f, x, torch.eye(4)[None], y)==0

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

@pytest.mark.parametrize('heat', [
    torch.zeros(1,4,4), torch.full((1,4,4), torch.nan), torch.full((1,4,4), torch.inf), torch.full((1,4,4), .7)])
def test_a_map_that_says_nothing_has_no_score(heat):
    both = torch.cat([heat, torch.eye(4)[None]])
    x,y,model = torch.rand(2,3,8,8), torch.zeros(2).long(), Reader().eval()
    mask = corner(3)
    mask[2] = False # nothing to be found
    for f in mask_metrics.values(): assert f(both[[0,1,1]], mask).isnan().tolist()==[True,False,True]
    for f in model_metrics.values(): assert f(model, x, both, y).isnan().tolist()==[True,False]

def test_wrong_input_is_refused():
    x,y,heat,model = torch.rand(2,3,8,8), torch.zeros(2).long(), torch.rand(2,4,4), Reader().eval()
    with pytest.raises(TypeError, match='The mask is ndarray'): energy(heat, np.zeros((2,8,8), bool))
    with pytest.raises(ValueError, match='one heatmap and one mask per image'): energy(heat, corner(3))
    with pytest.raises(ValueError, match='one mask per image'): energy(heat[0], corner(1)[0])
    with pytest.raises(ValueError, match='there are 3 classes'): deletion(model, x, heat, torch.zeros(3).long())
    with pytest.raises(ValueError, match='training mode'): road(Reader(), x, heat, y)
    with pytest.raises(TypeError, match='needs `heat`'): deletion(model, x, heat, y, fill='blend')
    with pytest.raises(TypeError, match='needs `data`'): deletion(model, x, heat, y, fill='dataset_mean')
    with pytest.raises(ValueError, match="did you mean 'mean'"): deletion(model, x, heat, y, fill='meen')
    with pytest.raises(ValueError, match='only one'): deletion(model, x[:1], heat[:1], y[:1], fill='swap')
    with pytest.raises(ValueError, match='steps=65 should be a number from 1 to 64'): insertion(model, x, heat, y, steps=65)
    with pytest.raises(ValueError, match='share=1.0'): road(model, x, heat, y, shares=[1.])
    with pytest.raises(ValueError, match='at least one pixel'): impute(x, torch.ones(2,8,8, dtype=torch.bool))
    with pytest.raises(ValueError, match='threshold=1.5'): iou(heat, corner(2), threshold=1.5)
    with pytest.raises(ValueError, match='indices from 0 to 9, but the model has 2 outputs'):
        deletion(model, x, heat, torch.tensor([0,9]))
    with pytest.raises(ValueError, match='whole numbers'): increase(model, x, heat, torch.rand(2))
    with pytest.raises(ValueError, match='tensors with one heatmap'): energy(heat.numpy(), corner(2))
    with pytest.raises(TypeError, match='returns a tuple'): deletion(lambda x: (x,), x, heat, y)

def test_nothing_is_disturbed(seen):
    model,x,heat,y = seen
    before,state = torch.get_rng_state(), {k:v.clone() for k,v in model.state_dict().items()}
    x.requires_grad_()
    for f in model_metrics.values(): assert not f(model, x, heat, y).requires_grad
    deletion(model, x, heat, y, fill='noise')
    assert torch.equal(before, torch.get_rng_state()) and x.grad is None and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, state[k]) for k,v in model.state_dict().items())
    for f in model_metrics.values():
        test_eq(f(model, x, heat, y), f(model, TensorImage(x.detach()), heat, TensorCategory(y))) # and again the same, of fastai's types

def test_scores_do_not_depend_on_the_batch(seen):
    model,x,heat,y = seen
    for k,f in model_metrics.items():
        one = torch.cat([f(model, *(o[i:i+1] for o in (x,heat,y)), **(dict(noise=0) if k=='road' else {}))
                         for i in range(len(x))])
        test_close(f(model, x, heat, y, **(dict(noise=0) if k=='road' else {})), one, eps=1e-3)

@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
def test_the_same_on_a_gpu(seen):
    model,x,heat,y = seen
    for f in model_metrics.values():
        test_close(f(deepcopy(model).cuda(), x.cuda(), heat, y).cpu(), f(model, x, heat, y), eps=1e-3)
    for f in mask_metrics.values(): test_close(f(heat.cuda(), corner(6,16).cuda()).cpu(), f(heat, corner(6,16)), eps=1e-4)

def test_every_metric_names_its_pitfall():
    df = pitfalls()
    assert list(df.index)==[*mask_metrics,*model_metrics] and set(df.better)=={'higher','lower'} and df.pitfall.str.len().min()>30
    assert set(df.index[df.better=='lower'])=={'average_drop','deletion'}

# for a learner

@pytest.fixture(scope='module')
def files(trained): return trained.dls.valid_ds.items

def on(trained, region):
    root = trained.dls.path
    return lambda items: regions(root, items)[region]

def state_of(learn):
    m = learn.model
    return [{k:v.clone() for k,v in m.state_dict().items()}, [o.training for o in m.modules()], [p.grad for p in m.parameters()],
            [len(o._forward_hooks)+len(o._backward_hooks) for o in m.modules()],
            torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()]

def untouched(a, b):
    same = lambda x,y: (
        all(same(x[k], y[k]) for k in x) if isinstance(x, dict)
        else all(map(same, x, y)) and len(x)==len(y) if isinstance(x, (list,tuple))
        else torch.equal(x, y) if isinstance(x, Tensor) else x==y)
    return same(a, b)

def test_scores_are_the_metrics_of_heat_on(trained, files):
    "The table is what one gets by hand, and the means are those of the rows; the learner is as before"
    before,items,masks = state_of(trained), files[:20], on(trained, 'shortcut')(files[:20])
    shipped = dict(mask_metrics|model_metrics, road=partial(road, shares=(.5,)))
    df = explanation_scores(trained, items, masks=on(trained, 'shortcut'), metrics=shipped, each=True)
    assert (untouched(before, state_of(trained))
            and list(df.columns)==['attribution','item',*mask_metrics,*model_metrics]
            and df.attribution.value_counts().to_dict()==dict(auto=20, random=20, centre=20))
    with keep_rng(): x = torch.cat([b[0] for b in whole_dl(trained.dls, items)]).as_subclass(Tensor)
    heat,m = heat_on(trained, items), torch.from_numpy(masks)
    with looking_into(trained.model), torch.no_grad():
        y = trained.model(x).argmax(1)
        ours = ({k:f(heat, m) for k,f in mask_metrics.items()}
                | {k:f(trained.model, x, heat, y) for k,f in model_metrics.items() if k!='road'})
        centre = deletion(trained.model, x, centre_heat(x), y)
    got = df[df.attribution=='auto']
    for k,o in ours.items(): np.testing.assert_allclose(got[k], o, atol=1e-5)
    np.testing.assert_allclose(df[df.attribution=='centre'].deletion, centre, atol=1e-5)
    some = dict(energy='energy', mine=average_drop)
    pd.testing.assert_frame_equal(
        explanation_scores(trained, items, masks=on(trained, 'shortcut'), metrics=some),
        df.groupby('attribution', sort=False)[['energy','average_drop']].mean().set_axis([*some], axis=1))
    assert list(explanation_scores(trained, items[:2]).columns)==list(model_metrics)
    assert got.pointing_game.mean()>.9 and got.energy.mean()>3*df[df.attribution=='centre'].energy.mean() # the answer is known

def test_masks_come_in_any_form_and_stay_with_their_images(trained, files, tmp_path):
    ask = partial(explanation_scores, trained, files, metrics='energy', n=9, each=True)
    ref = ask(masks=on(trained, 'shortcut'))
    arrays = on(trained, 'shortcut')(files)
    assert ref['item'].unique().tolist()==np.linspace(0, len(files)-1, 9).round().astype(int).tolist()
    big = [PILMask.create(np.kron(o, np.ones((3,3), np.uint8))*np.uint8(255)) for o in arrays] # images of another size, 0 and 255
    for i,o in enumerate(big): o.save(tmp_path/f'{i}.png')
    for masks in ([tmp_path/f'{i}.png' for i in range(len(big))], arrays, torch.from_numpy(arrays),
                  TensorMask(torch.from_numpy(arrays).long()), list(arrays), big):
        pd.testing.assert_frame_equal(ask(masks=masks), ref)
    for bad,msg in ((arrays[:-1],f'{len(files)-1} masks for {len(files)} items'),
                    (lambda items: arrays[:3],'3 masks for 9 items'),
                    (lambda items: regions(trained.dls.path, items),'dict of digit, shortcut, rest'),
                    ([np.ones((4,4,3))]*len(files),r'shape \(4, 4, 3\)')):
        with pytest.raises((ValueError,TypeError), match=msg): ask(masks=bad)

def test_flat_maps_and_empty_masks_are_counted_and_left_out(trained, files):
    def some_flat(xb, yb):
        return random_heat(xb, rng=torch.Generator().manual_seed(0))*(torch.arange(len(xb))%4>0)[:,None,None]
    with pytest.warns(ProxyWarning, match='2 of 8 images have an uninformative heatmap'):
        df = explanation_scores(trained, files[:8], dict(mine=some_flat, other='GradCAM'), metrics=['increase','deletion'], each=True)
    assert (df.groupby('attribution', sort=False)['item'].apply(list).to_dict()
            =={k:[1,2,3,5,6,7] for k in ('mine','other','random','centre')} and df.deletion.notna().all())
    with pytest.warns(ProxyWarning), pytest.raises(ValueError, match='No image has an informative heatmap'):
        explanation_scores(trained, files[:8], lambda xb,yb: torch.zeros(len(xb),4,4), metrics='increase')
    masks = on(trained, 'shortcut')(files[:8])
    masks[:3] = False
    with pytest.warns(ProxyWarning, match='3 of 8 masks are empty'):
        df = explanation_scores(trained, files[:8], masks=masks, metrics=['energy','increase'], each=True)
    assert df.energy.isna().sum()==9 and df.increase.notna().all()

def test_the_model_is_asked_for_the_class_that_is_explained(trained, files):
    lies = get_image_files(trained.dls.path/'flipped').sorted()[:12]
    asked = []
    def note(x, y):
        asked.append(y)
        return torch.zeros(len(y))
    ask = lambda target,items=lies: (
        asked.clear(),
        explanation_scores(trained, items, metrics=note, target=target),
        torch.cat(asked[::3]).tolist())[-1]
    preds = [int(o) for o in trained.get_preds(dl=trained.dls.test_dl(lies))[0].argmax(1)]
    labels = [int(trained.dls.vocab.o2i[o.parent.name]) for o in lies]
    assert (preds!=labels and ask('pred')==ask('margin')==ask('finer')==preds
            and ask('label')==ask(Margin('label'))==labels and ask(3)==[3]*12)
    own = lambda out, yb: out[:,0]-out[:,1]
    with pytest.raises(TypeError, match='does not explain a single class'): ask(own)
    assert len(explanation_scores(trained, lies, target=own, metrics='energy', masks=on(trained, 'digit')))==3

def test_a_single_output():
    class One(nn.Module):
        def forward(self, x): return 4*(x.mean((1,2,3))-.5)[:,None]
    y = torch.tensor([1,0])
    x = torch.stack([torch.ones(3,8,8), torch.zeros(3,8,8)])
    from proxy_attention.interpret.metrics import _class_of
    assert _class_of(as_target('pred'), One()(x), None).tolist()==_class_of(as_target('label'), One()(x), y).tolist()==[1,0]
    p = deletion(One().eval(), x, torch.rand(2,8,8), y, fill=lambda img: 1-img)
    test_close(p, torch.full((2,), .5), eps=.02) # from one side to the other, the same for both

def test_metrics_and_attributions_are_named(trained, files):
    ask = lambda *args,**kw: explanation_scores(trained, files[:4], *args, **kw)
    df = ask([LayerCAM, partial(GradCAM, fuse='max'), 'Saliency', random_heat], metrics=[increase, partial(deletion, steps=4)])
    assert (list(df.index)==['LayerCAM','GradCAM','Saliency','random_heat','random','centre']
            and list(df.columns)==['increase','deletion'])
    for how,msg in ((dict(metrics=[deletion, partial(deletion, steps=4)]),'same name'),
                    (dict(attribution={'centre':LayerCAM}),"'centre' is the name of a control"),
                    (dict(metrics='energy'),'pass `masks`'),
                    (dict(metrics=lambda heat: 0.),'returned float'),
                    (dict(metrics=lambda heat: heat),r'returned \(4, 8, 8\)'),
                    (dict(metrics=lambda pred: pred),'needs `pred`'),
                    (dict(n=0),'n=0'), (dict(metrics=[]),'list is empty'), (dict(attribution=[]),'list is empty'),
                    (dict(attribution='GradCan'),"did you mean 'GradCAM'")):
        with pytest.raises((ValueError,TypeError), match=msg): ask(**(dict(metrics='increase')|how))
    with pytest.raises(ValueError, match='no items'): explanation_scores(trained, [])
    assert len(explanation_scores(trained, files[0], metrics='increase'))==3

def test_items_of_a_data_frame(path):
    df = pd.DataFrame(dict(file=[str(o.relative_to(path)) for o in get_image_files(path/'train').sorted()]))
    df['label'] = df.file.str.split('/').str[-2]
    learn = Learner(
        ImageDataLoaders.from_df(df, path, bs=8, num_workers=0, seed=0), digits_net(),
        metrics=AttentionOn(lambda items: regions(path, [path/o for o in items.file])['digit'], n=10))
    masks = lambda items: regions(path, [path/o for o in items.file])['shortcut']
    assert explanation_scores(learn, df, masks=masks, metrics='energy', n=5).shape==(3,1)
    with learn.no_bar(): assert 0<learn.validate()[1]<1

# weights drawn anew

def test_randomised_is_a_cascade_and_leaves_the_learner(trained, files):
    before = state_of(trained)
    df = randomised(trained, files, 'GradCAM', n=12, steps=100, target='pred')
    assert untouched(before, state_of(trained))
    names = [k for k,m in trained.model.named_modules() if len(list(m.parameters(recurse=False)))][::-1]
    assert df.layer.tolist()==names and df.redrawn.is_monotonic_increasing and df.redrawn.iloc[-1]==1
    items = [files[i] for i in np.linspace(0, len(files)-1, 12).round().astype(int)]
    with keep_rng():
        xb = torch.cat([b[0] for b in whole_dl(trained.dls, items)]).as_subclass(Tensor)
        model = deepcopy(trained.model).eval()
        y = model(xb).argmax(1)
        was,got = GradCAM(model)(xb, y),[]
        torch.manual_seed(0)
        for k in names:
            model.get_submodule(k).reset_parameters()
            got.append(agreement(was, GradCAM(model, layer='4.2')(xb, y))[0].nanmean().item())
    np.testing.assert_allclose(df['rank'], got, atol=1e-4)
    assert abs(df['rank'].iloc[-1])<.5
    few = randomised(trained, files, 'GradCAM', n=12, steps=3)
    assert len(few)==3 and few.layer.iloc[0]==names[0] and few.layer.iloc[-1]==names[-1]
    again = randomised(trained, files, 'GradCAM', n=12, steps=3, seed=1)
    assert again['rank'].tolist()!=few['rank'].tolist()

def test_randomised_is_quantus_s(trained, files):
    "Where Quantus is installed: the same cascade over the layers"
    quantus = pytest.importorskip('quantus')
    from quantus.helpers.model.pytorch_model import PyTorchModel
    theirs = [k for k,_ in PyTorchModel(deepcopy(trained.model), channel_first=True).get_random_layer_generator('top_down')]
    assert randomised(trained, files, 'GradCAM', n=4, steps=100).layer.tolist()==theirs

def test_randomised_reaches_every_weight(trained, files):
    "Also those of a module that does not say how it begins"
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.by,self.one = nn.Parameter(torch.rand(64)+1), nn.Parameter(torch.ones(1))
        def forward(self, x): return x*self.by*self.one
    learn = Learner(trained.dls, nn.Sequential(*deepcopy(trained.model)[:-1], Scale(), trained.model[-1]))
    df = randomised(learn, files, 'LayerCAM', layer=learn.model[4], n=4, steps=100) # a module of the learner's own model, found in the copy
    assert len(df)==8 and df.n.max()==4
    from proxy_attention.interpret.metrics import _redraw
    m = Scale()
    old = m.by.detach().clone()
    with torch.no_grad(): _redraw(m)
    assert not torch.equal(m.by, old) and abs(m.by.mean()-old.mean())<.2 and m.one==1

@pytest.mark.parametrize('target', ['pred','label','margin','finer',2,lambda out,yb: out[:,0]])
def test_randomised_explains_what_was_meant(trained, files, target):
    "All along, also where the prediction changes; a map that asks no model stays"
    df = randomised(trained, files, 'GradCAM', target=target, n=6, steps=2)
    assert len(df)==2 and df['rank'].abs().max()<=1
    fixed = []
    def mine(model, layer, target):
        def heat(xb, yb):
            fixed.append(yb)
            return centre_heat(xb)
        return heat
    assert (randomised(trained, files, mine, target=target, n=6, steps=3)['rank']>.999).all()
    if not callable(target): assert all(torch.equal(o, fixed[0]) for o in fixed)
    with pytest.raises(TypeError, match='tied to its own model'): randomised(trained, files, random_heat)
    with pytest.raises(ValueError, match='steps=0'): randomised(trained, files, steps=0)

# in every epoch

def fitted(path, metrics, epochs=2, cbs=None):
    "Fresh, and trained for so many epochs"
    set_seed(0)
    dls = ImageDataLoaders.from_folder(path, train='train', valid='valid', bs=32, num_workers=0,
                                       item_tfms=Resize(32), batch_tfms=aug_transforms(size=32))
    net = digits_net()
    learn = Learner(dls, nn.Sequential(*net[:-1], nn.Dropout(.3), net[-1]), metrics=metrics, cbs=cbs)
    with learn.no_bar(), learn.no_logging():
        if epochs: learn.fit_one_cycle(epochs, 3e-3)
    return learn

def drawing(path):
    "Masks of the digits, by a function that draws random numbers"
    def masks(items):
        torch.rand(1)
        random.random()
        np.random.rand()
        return regions(path, items)['digit']
    return masks

def looks(path):
    return [accuracy, AttentionOn(drawing(path), n=12),
            AttentionOn(lambda o: regions(path, o)['shortcut'], 'at patch', 'pointing_game', 'Saliency', n=12, target='label')]

def test_a_fit_is_the_same_to_the_bit(path):
    "Weights, batch norm, optimizer, losses, random numbers: with dropout, augmentation and momentum"
    plain = fitted(path, accuracy)
    ends = state_of(plain)
    watched = fitted(path, looks(path))
    assert untouched(ends, state_of(watched))
    assert untouched(plain.opt.state_dict()['state'], watched.opt.state_dict()['state'])
    assert (plain.recorder.losses==watched.recorder.losses
            and [o[:3] for o in plain.recorder.values]==[o[:3] for o in watched.recorder.values])
    assert list(watched.recorder.metric_names)==['epoch','train_loss','valid_loss','accuracy','on object','at patch','time']
    got = np.array([o[3:] for o in watched.recorder.values])
    assert got.shape==(2,2) and ((got>=0)&(got<=1)).all()
    items = watched.dls.valid_ds.items
    at = np.linspace(0, len(items)-1, 12).round().astype(int)
    some = [items[i] for i in at]
    now = energy(heat_on(watched, some), torch.from_numpy(regions(path, some)['digit'])).nanmean().item()
    assert got[-1,0]==pytest.approx(now, abs=1e-6) # what one gets by hand at the end

def test_when_nobody_reads_it_no_heat_is_made(path, monkeypatch):
    learn = fitted(path, looks(path), 0)
    monkeypatch.setattr(AttentionOn, 'look', lambda *_: 1/0)
    with learn.no_bar():
        learn.get_preds()
        learn.predict(learn.dls.valid_ds.items[0])
        learn.get_preds(dl=learn.dls.test_dl(learn.dls.valid_ds.items[:3], with_labels=True), with_loss=True)
        with pytest.raises(ZeroDivisionError): learn.validate()

def test_it_goes_along_with_other_callbacks(path, tmp_path):
    "A learning rate search, the best model by attention, metrics of the training part, a proxy step"
    learn = fitted(path, looks(path), cbs=[
        SaveModelCallback(monitor='at patch', fname=str(tmp_path/'best')), ProxyAttention(steps=[1,'p',1], share=.1)])
    learn.remove_cbs(learn.cbs.filter(risinstance((SaveModelCallback,ProxyAttention))))
    assert (tmp_path/'best.pth').exists() and learn.metrics[1].learn is None
    with learn.no_bar(), learn.no_logging():
        learn.lr_find(num_it=3, show_plot=False)
        learn.recorder.train_metrics = True
        learn.fit(1, 1e-4)
    assert len(learn.recorder.values[0])==8 and all(0<=o<=1 for o in learn.recorder.values[0][2:4])
    learn.dls.path = tmp_path
    learn.path = tmp_path
    learn.metrics = [AttentionOn(by_hand)]
    learn.export('e.pkl')
    assert load_learner(tmp_path/'e.pkl').metrics[0].name=='on object'

def by_hand(items): return np.ones((len(items),32,32), bool)

def test_attention_on_what_cannot_be_is_refused(path):
    for masks,msg in ((lambda o: regions(path, o),'dict of digit'), (lambda o: [],'0 masks for 12 items'),
                      (np.ones((3,32,32)),r'3 masks for \d+ items')):
        learn = digits_learner(path)
        learn.metrics = AttentionOn(masks, n=12)
        with pytest.raises((TypeError,ValueError), match=msg), learn.no_bar(): learn.validate()
    with pytest.raises(TypeError, match='AttentionOn needs'): AttentionOn(None)
    with pytest.raises(ValueError, match="did you mean 'energy'"): AttentionOn(by_hand, metric='energie')
    data = [(torch.rand(3,32,32), torch.tensor(i%2)) for i in range(8)]
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader as FDL
    learn = Learner(DataLoaders(FDL(data, bs=4), FDL(data, bs=4)), digits_net(2),
                    loss_func=nn.CrossEntropyLoss(), metrics=AttentionOn(by_hand))
    with pytest.raises(TypeError, match='give the items'), learn.no_bar(): learn.validate()
    learn.metrics = AttentionOn(by_hand, items=train_items(learn.dls), n=None)
    with learn.no_bar(): assert learn.validate()[1]==pytest.approx(1)

@pytest.mark.parametrize('kind', [torch.float16,torch.bfloat16])
def test_pixels_are_imputed_in_full_precision(kind):
    "Sums over a large image overflow in half precision"
    torch.manual_seed(0)
    x,mask = (torch.randn(1,3,448,448)+1).to(kind),torch.rand(1,448,448)<.5
    made = impute(x, mask, noise=0)
    assert made.dtype==kind and torch.allclose(made, impute(x.float(), mask, noise=0).to(kind))
