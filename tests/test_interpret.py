"ProxyInterpretation: fastai's numbers, heat of the input that the loss comes from, known places, other kinds of learners"
import inspect, numpy as np, pytest, random, torch, warnings
from PIL import Image
from fastai.vision.all import *
from proxy_attention.all import *
from proxy_attention.proxy.step import step
from proxy_attention.attribution.heatmap import heat_share, points_at, resize_heat
from proxy_attention.attribution.methods import as_attribution
from proxy_attention.attribution.targets import Margin
from proxy_attention.interpret.heats import show_grid, show_heat, show_heats
from shared_fixtures import small_net

class Corner(nn.Module):
    "Class 0 if the pixel at the top left is bright, class 1 if that at the bottom right is; through a layer that can be looked into"
    def __init__(self, c=3, n_out=2):
        super().__init__()
        self.conv = nn.Conv2d(c, n_out, 1, bias=False)
        with torch.no_grad(): self.conv.weight.fill_(1/c)
        self.bn = nn.BatchNorm2d(n_out)
    def forward(self, x):
        a = self.conv(x).relu()
        return 4*torch.stack([a[:,0,:4,:4].amax((1,2)), a[:,1,-4:,-4:].amax((1,2))], 1)

def lit(path, part, i, label, at, size=16, mode='RGB'):
    "An image, black but for a spot of 4×4 in a corner"
    img = np.zeros((size,size), np.uint8)
    img[(slice(4),slice(4)) if at==0 else (slice(-4,None),slice(-4,None))] = 100+i
    f = path/part/str(label)/f'{i}.png'
    f.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(img).convert(mode).save(f)

@pytest.fixture(scope='module')
def spots(tmp_path_factory):
    "Spots at the top left are labelled 'a', at the bottom right 'b'; two of 'a' lie"
    path = tmp_path_factory.mktemp('spots')
    for part,n in (('train',8),('valid',10)):
        for i in range(n): lit(path, part, i, 'ab'[i%2], i%2)
    for i in (20,22): lit(path, 'valid', i, 'a', 1)
    return path

def spot_learner(path, model=None, loss=None, block=ImageBlock, **kwargs):
    dls = DataBlock(
        (block,CategoryBlock), get_items=get_image_files, get_y=parent_label, splitter=GrandparentSplitter(), **kwargs
    ).dataloaders(path, bs=4, num_workers=0, shuffle=False)
    return Learner(dls, model or Corner(), loss_func=loss or CrossEntropyLossFlat(), metrics=accuracy)

@pytest.fixture
def learn(spots): return spot_learner(spots)

def axes_image(ax): return np.asarray(ax.images[0].get_array(), float)[...,:3]

def luminance(rgb):
    "CIE L*, 0 to 100"
    rgb = np.asarray(rgb, float)[...,:3].clip(0,1)
    y = np.where(rgb<=.04045, rgb/12.92, ((rgb+.055)/1.055)**2.4) @ [.2126,.7152,.0722]
    return np.where(y>.008856, 116*np.cbrt(y)-16, 903.3*y)

# ---- fastai's numbers

@pytest.mark.parametrize('largest', [True,False])
def test_losses_and_their_order_are_fastais(trained, largest):
    with trained.no_bar(): ours,theirs = (o.from_learner(trained) for o in (ProxyInterpretation,Interpretation))
    assert torch.equal(ours.losses, theirs.losses)
    for a,b in zip(ours.top_losses(7, largest), theirs.top_losses(7, largest)): assert torch.equal(a, b)
    assert ours.top_losses(3, items=True)[2]==theirs.top_losses(3, items=True)[2]
    assert isinstance(ours, ClassificationInterpretation)
    with trained.no_bar():
        assert (ours.confusion_matrix()==ClassificationInterpretation.from_learner(trained).confusion_matrix()).all()

def test_the_training_set_is_seen_without_augmentation(spots):
    learn = spot_learner(spots, batch_tfms=[Flip(p=1.), Rotate(max_deg=90, p=1.)])
    a,b = (ProxyInterpretation.from_learner(learn, 0) for _ in range(2))
    assert len(a.losses)==8 and torch.equal(a.losses, b.losses)
    assert torch.equal(a.losses, interpret_train(learn).losses)
    # there is augmentation
    assert not torch.equal(learn.dls.train.one_batch()[0], learn.dls.valid.new(dataset=learn.dls.train_ds).one_batch()[0])
    assert a.items_at([3])[0]==learn.dls.train_ds.items[3]

def test_titles_say_what_fastai_says(learn):
    interp = ProxyInterpretation.from_learner(learn)
    with learn.no_bar():
        interp.plot_top_losses(4)
        ours = [ax.get_title() for ax in plt.gcf().axes]
        Interpretation.plot_top_losses(interp, 4)
    assert [o.get_title() for o in plt.gcf().axes]==ours and ours[0].startswith('b/a / ') # 'b' though labelled 'a'
    assert [o.get_title() for o in interp.plot_top_losses([0,3])]==[ours[0],ours[3]]
    assert [o.get_title() for o in interp.plot_top_losses(range(2))]==ours[:2]

def test_more_than_there_are_and_one(learn):
    interp = ProxyInterpretation.from_learner(learn)
    assert len(interp.top_losses(100)[0])==len(interp.losses)==12
    assert len(interp.plot_top_losses(100))==12 and len(interp.plot_top_losses(1))==1
    with pytest.raises(ValueError, match='k=0 asks for no item'): interp.plot_top_losses(0)
    assert interp.show_heats(3).shape==(2,1) and interp.compare_with(learn, idxs=[3]).shape==(3,1)
    assert len(interp.show_heats(torch.tensor([3,4]))[0])==2 and len(interp.plot_where(n=1))==1
    for bad in (12, -1, [0,99]):
        with pytest.raises(IndexError, match='there are 12'): interp.heats(bad)
    with pytest.raises(ValueError, match='No item'): interp.heats([])

# ---- heat

def test_heat_lies_on_the_spot(learn):
    interp = ProxyInterpretation.from_learner(learn)
    heat,(labels,preds) = interp.heats(),zip(*(o[1:3] for o in interp.decoded(range(12))))
    mask = torch.zeros(12,16,16, dtype=torch.bool)
    for i,p in enumerate(preds): mask[i][(slice(4),slice(4)) if p=='a' else (slice(-4,None),slice(-4,None))] = True
    assert sum(a!=b for a,b in zip(labels, preds))==2
    assert points_at(heat, mask).all() and (heat_share(heat, mask)>.99).all()
    lies = [i for i in range(12) if labels[i]!=preds[i]]
    asks = ProxyInterpretation.from_learner(learn, target='label')
    with pytest.warns(ProxyWarning, match='flat'): assert not asks.heats(lies).any() # nothing speaks for 'a' in them
    assert points_at(asks.heats([i for i in range(12) if i not in lies]), mask[[i for i in range(12) if i not in lies]]).all()

@pytest.mark.parametrize('how,target', [
    ('GradCAM','pred'),('LayerCAM','label'),('Saliency','pred'),('GradCAM','margin'),('LayerCAM',Margin('label')),('EigenCAM',1)])
def test_heat_is_that_of_the_explainer(trained, how, target):
    interp = ProxyInterpretation.from_learner(trained, attribution=how, target=target)
    idxs = [5,0,9]
    dl = trained.dls.test_dl([trained.dls.valid_ds.items[i] for i in idxs], with_labels=True)
    xb,yb = (o.as_subclass(Tensor) for o in dl.one_batch())
    trained.model.eval()
    assert torch.allclose(interp.heats(idxs), as_attribution(how)(trained.model, target=target)(xb, yb), atol=1e-6)

def test_a_crop_of_validation_is_what_is_shown_and_explained(tmp_path):
    "A second spot, brighter, that validation cuts off: it is in no heat of the loss, but in that of the whole image"
    img = np.zeros((16,32,3), np.uint8)
    img[:4,8:12],img[-4:,24:] = 120,250
    for part in ('train','valid'):
        for c in 'ab':
            (tmp_path/part/c).mkdir(parents=True)
            Image.fromarray(img).save(tmp_path/part/c/'0.png')
    learn = spot_learner(tmp_path, item_tfms=Resize(16))
    interp = ProxyInterpretation.from_learner(learn)
    seen = interp.decoded([0])[0]
    assert seen[2]=='a' and seen[0].shape==(3,16,16) and seen[0][:,:4,:4].min()>100 and seen[0][:,-4:,-4:].max()==0
    assert interp.heats([0])[0,:4,:4].mean()>.9 and interp.heats([0])[0,-4:].max()==0
    assert interp.heats([0], whole=True)[0,-4:,-3:].mean()>.9 # 'b', where the spot is in view
    shown = axes_image(interp.plot_top_losses(1, alpha=0, dim=1)[0])
    assert np.abs(shown.mean(-1)-seen[0].float().mean(0).numpy()/255).max()<.01

def test_pictures_are_decoded(spots):
    "Normalised, grey, and both"
    for mode,c,stats in ((PILImage,3,([.3]*3,[.2]*3)),(PILImageBW,1,([.3],[.2])),(PILImageBW,1,None)):
        learn = spot_learner(spots, Corner(c), block=ImageBlock(mode),
                             **({} if stats is None else dict(batch_tfms=Normalize.from_stats(*stats, cuda=False))))
        interp = ProxyInterpretation.from_learner(learn)
        assert len(interp.plot_top_losses(3))==3 and interp.show_heats([0,1]).shape==(2,2)
        for i in (0,5):
            img,f = interp.decoded([i])[0][0],interp.items_at([i])[0]
            want = np.asarray(Image.open(f).convert('L'))/255
            assert img.shape==(c,16,16)
            assert np.abs(axes_image(interp.show_heats([i])[0,0]).mean(-1)-want).max()<.01

def test_plot_where(learn):
    interp = ProxyInterpretation.from_learner(learn)
    a,b = interp.plot_where()
    assert [a.get_title(),b.get_title()]==['a (5)','b (7)'] # as predicted: two of 'a' are seen as 'b'
    maps = [np.asarray(o.images[0].get_array()) for o in (a,b)]
    assert np.unravel_index(maps[0].argmax(), (64,64))<(16,16) and min(np.unravel_index(maps[1].argmax(), (64,64)))>=48
    heat = interp.heats(whole=True)
    preds = [o[2] for o in interp.decoded(range(12))]
    want = heat[[i for i in range(12) if preds[i]=='a']].mean(0)
    assert np.abs(maps[0]-resize_heat(want, (64,64)).numpy()).max()<1e-5
    assert [o.get_title() for o in interp.plot_where('label')]==['a (7)','b (5)']
    assert [o.get_title() for o in interp.plot_where(most=1)]==['b (7)']
    with pytest.raises(ValueError, match="did you mean 'label'"): interp.plot_where('labels')

# ---- two models

class Swapped(Corner):
    def forward(self, x): return super().forward(x).flip(1)

def test_two_models(learn, spots):
    interp,other = ProxyInterpretation.from_learner(learn, attribution='GradCAM'),spot_learner(spots, Swapped())
    for o in (other, ProxyInterpretation.from_learner(other)):
        axs = interp.compare_with(o, k=3, names=('one','two'))
        assert axs.shape==(3,3) and [axs[i,0].texts[0].get_text() for i in range(3)]==['image','one','two']
        for c in range(3):
            one,two = axs[1,c],axs[2,c]
            assert {one.get_title(),two.get_title()}=={'a','b'} # they contradict each other
            label = axs[0,c].get_title().split()[0]
            assert (one.title.get_color()==('black' if one.get_title()==label else 'C3')
                    and two.title.get_color()!=one.title.get_color())
            assert '100%' in axs[0,c].get_title() # in the same place, as there is one spot only
    theirs = ProxyInterpretation.from_learner(other)
    diff = (interp.losses-theirs.losses).abs()
    picks = [o.get_title().split()[0] for o in interp.compare_with(other, k=12)[0]]
    assert picks==[interp.decoded([int(i)])[0][1] for i in diff.topk(12).indices]
    with pytest.raises(ValueError, match='different images'): interp.compare_with(ProxyInterpretation.from_learner(other, 0))

def test_exported_and_loaded(spots, tmp_path):
    learn = spot_learner(spots)
    learn.add_cb(HeatDrift())
    fit(learn)
    learn.path = tmp_path
    learn.export('m.pkl')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        old = load_learner(tmp_path/'m.pkl')
    assert not len(old.heat_drift.maps) and old.heat_drift.items is None
    with pytest.raises(ValueError, match='exported learner has none'): ProxyInterpretation.from_learner(old)
    files = get_image_files(spots/'valid').sorted()
    a,b = (ProxyInterpretation.from_learner(o, dl=o.dls.test_dl(files, with_labels=True)) for o in (learn,old))
    assert torch.equal(a.losses, b.losses) and torch.equal(a.heats(), b.heats())
    assert len(b.plot_top_losses(4))==4 and b.compare_with(learn, k=2).shape==(3,2) and len(b.plot_where())
    with pytest.raises(ValueError, match='There are no heatmaps yet'): b.plot_drift()

# ---- other kinds

def test_several_labels_work(spots):
    dls = DataBlock(
        (ImageBlock,MultiCategoryBlock(vocab=['a','b'])), get_items=get_image_files, get_y=lambda f: [parent_label(f)],
        splitter=GrandparentSplitter()).dataloaders(spots, bs=4, num_workers=0)
    interp = ProxyInterpretation.from_learner(Learner(dls, Corner(), loss_func=BCEWithLogitsLossFlat()))
    assert len(interp.plot_top_losses(3))==3 and interp.show_heats([0,1]).shape==(2,2)
    assert interp.heats([0]).any()
    assert len(interp.plot_where())

def test_refused_in_a_sentence(spots, learn):
    dls = DataBlock(
        (ImageBlock,ImageBlock), get_items=get_image_files, get_y=noop,
        splitter=GrandparentSplitter()).dataloaders(spots, bs=4, num_workers=0)
    with pytest.raises(TypeError, match='one class per image'):
        ProxyInterpretation.from_learner(Learner(dls, Corner(n_out=2), loss_func=MSELossFlat()))
    with pytest.raises(ValueError, match='no labels'):
        ProxyInterpretation.from_learner(learn, dl=learn.dls.test_dl(get_image_files(spots/'valid')))
    plain = DataLoaders.from_dsets(*[[(torch.rand(3,16,16), 0) for _ in range(4)]]*2, bs=2)
    with pytest.raises(TypeError, match='does not list its items'):
        ProxyInterpretation.from_learner(Learner(plain, Corner(), loss_func=CrossEntropyLossFlat()))
    with pytest.raises(ValueError, match="did you mean 'GradCAM'"):
        ProxyInterpretation.from_learner(learn, attribution='GradCamm')
    with pytest.raises(ValueError, match='No target'): ProxyInterpretation.from_learner(learn, target='prediction')
    interp = ProxyInterpretation.from_learner(learn)
    with pytest.raises(ValueError, match='no ProxyAttention'): interp.show_proxies()
    with pytest.raises(ValueError, match='HeatDrift'): interp.plot_drift()
    learn.add_cb(ProxyAttention())
    with pytest.raises(ValueError, match='There are no proxy images'): interp.show_proxies()
    for kw in (dict(n=0), dict(every=0), dict(grid=1)):
        with pytest.raises(ValueError): HeatDrift(**kw)

# ---- nothing left behind

def states(learn):
    "What a look must not change"
    return dict(
        weights={k:v.clone() for k,v in learn.model.state_dict().items()},
        modes=[m.training for m in learn.model.modules()],
        cbs=list(learn.cbs), dls=learn.dls, loaders=list(learn.dls.loaders),
        attrs=[{k:v for k,v in o.__dict__.items() if k!='rng'} for o in learn.dls.loaders],
        grads=[p.grad for p in learn.model.parameters()],
        values=[list(o) for o in learn.recorder.values], losses=list(map(float, learn.recorder.losses)),
        loop={k:learn.__dict__.get(k) for k in ('epoch','iter','dl','xb','training')},
        hooks=sum(len(m._forward_hooks)+len(m._backward_hooks) for m in learn.model.modules()),
        py=random.getstate(), np=np.random.get_state()[1].tolist(), torch=torch.get_rng_state().tolist(),
        rngs=[o.rng.getstate() for o in learn.dls.loaders])

def same_states(a, b):
    assert all(torch.equal(v, b['weights'][k]) for k,v in a['weights'].items())
    for k in a:
        if k in ('weights','attrs','dls','loaders','cbs','loop'): continue
        assert a[k]==b[k], k
    assert (a['dls'] is b['dls'] and all(x is y for k in ('loaders','cbs') for x,y in zip(a[k], b[k]))
            and len(a['cbs'])==len(b['cbs']))
    assert all(a['loop'][k] is b['loop'][k] for k in a['loop'])
    assert all(
        x.keys()==y.keys() and all(x[k] is y[k] or x[k]==y[k] for k in x if not isinstance(x[k], (np.ndarray,Tensor)))
        for x,y in zip(a['attrs'], b['attrs']))

def test_the_learner_is_as_before(few, quiet):
    learn = digits_learner(few)
    learn.add_cbs([HeatDrift(n=2), ProxyAttention(steps=[1,'p',1], share=8)])
    quiet(learn, 'fit', 2, 1e-3)
    learn.model.train()
    learn.model[0][1].eval()
    unlabelled = learn.dls.test_dl(learn.dls.valid_ds.items[:1])
    before = states(learn)
    interp = ProxyInterpretation.from_learner(learn)
    for f in (lambda: ProxyInterpretation.from_learner(learn, 0), lambda: interp.plot_top_losses(3),
              lambda: interp.show_heats([1,2], ['GradCAM','Saliency']), interp.plot_where, interp.show_proxies, interp.plot_drift,
              lambda: interp.compare_with(learn, k=2)):
        f()
        same_states(before, states(learn))
    with pytest.raises(ValueError): ProxyInterpretation.from_learner(learn, dl=unlabelled)
    same_states(before, states(learn))

# ---- proxies and drift

def fit(learn, n=1, **kwargs):
    with learn.no_bar(), learn.no_logging(): learn.fit(n, 1e-3, **kwargs)
    return learn

def test_proxies_are_shown_as_they_were_served(few):
    "Each image is turned upside down on its way into a batch; so is its proxy"
    dls = ImageDataLoaders.from_folder(few, train='train', valid='valid', bs=16, num_workers=0,
                                       batch_tfms=[Flip(p=1.), Normalize.from_stats(*imagenet_stats)])
    learn = Learner(dls, digits_net(), loss_func=CrossEntropyLossFlat())
    pa = ProxyAttention(steps=[1,'p',1], share=10, fill='zero', p=1.)
    fit(learn, 2, cbs=pa)
    interp = ProxyInterpretation.from_learner(learn)
    with pytest.raises(ValueError, match='no ProxyAttention'): interp.show_proxies() # it went with the fit
    axs = interp.show_proxies(4, pa)
    assert axs.shape==(4,4)
    for c in range(4):
        orig,proxy,served = (axes_image(axs[r,c]) for r in (0,2,3))
        assert np.abs(orig-proxy).max()>.1 and np.abs(proxy[:,::-1]-served).max()<.02
    top = pa.log.sort_values('loss', ascending=False).head(4)
    assert [o.get_title() for o in axs[0]]==top.targ.tolist()
    assert 'replaces it, p=1' in axs[2,0].texts[0].get_text() and 'an example' in axs[3,0].texts[0].get_text()

class Wander(Callback):
    "Moves what the model sees, epoch by epoch"
    def before_epoch(self): self.learn.model.shift = self.epoch

class Shifted(nn.Module):
    "Reads one row of the image, another one in each epoch"
    def __init__(self):
        super().__init__()
        self.conv,self.shift = nn.Conv2d(3, 2, 1),0
        nn.init.ones_(self.conv.weight)
    def forward(self, x):
        a = self.conv(x).relu()
        return a[:,:,2*self.shift:2*self.shift+2].mean((2,3))

def white(tmp_path):
    for part,n in (('train',4),('valid',6)):
        for i in range(n):
            f = tmp_path/part/'ab'[i%2]/f'{i}.png'
            f.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((12,12,3), 255, np.uint8)).save(f)
    return tmp_path

def test_drift_is_what_was_seen_after_each_epoch(tmp_path):
    learn = spot_learner(white(tmp_path), Shifted())
    learn.add_cbs([Wander(), HeatDrift(n=3, target=0)])
    fit(learn, 4)
    drift = learn.heat_drift
    assert len(drift.maps)==4 and drift.epochs==[0,1,2,3] and len(drift.items)==3
    for e,m in enumerate(drift.maps):
        assert m.dtype==torch.float16 and m.shape==(3,12,12)
        assert m[:,2*e:2*e+2].min()==1 and m.sum()==3*24 # all of it in the row of that epoch
    moved = drift.moved()
    assert moved.iou.iloc[:-1].max()<.2 and moved.iou.iloc[-1]==1 and (moved['empty']==0).all()
    axs = ProxyInterpretation.from_learner(learn).plot_drift(most=2)
    assert axs.shape==(3,3) and [axs[i,0].texts[0].get_text().split('\n')[0] for i in (1,2)]==['epoch 0','epoch 3']
    learn.validate()
    learn.get_preds()
    assert len(drift.maps)==4 # only epochs that were trained in
    fit(learn, 2)
    assert drift.epochs==[0,1,2,3,4,5]

def test_drift_every_few_epochs_and_at_the_end(tmp_path):
    learn = spot_learner(white(tmp_path), Shifted())
    drift = HeatDrift(items=learn.dls.train_ds.items[:2], every=2, grid=4)
    fit(learn, 5, cbs=drift)
    assert drift.epochs==[1,3,4] and drift.maps[0].shape==(2,4,4)
    with pytest.raises(ValueError, match='HeatDrift'): ProxyInterpretation.from_learner(learn).plot_drift()
    assert ProxyInterpretation.from_learner(learn).plot_drift(drift).shape==(4,2)

def test_drift_changes_no_weight(few, quiet, weights, same):
    a,b = digits_learner(few),digits_learner(few)
    b.add_cb(HeatDrift(n=4))
    quiet(a, 'fit_one_cycle', 2, 1e-3)
    quiet(b, 'fit_one_cycle', 2, 1e-3)
    assert same(weights(a), weights(b)) and len(b.heat_drift.maps)==2

# ---- for every eye

machado = dict( # Machado et al. 2009, full severity, on linear RGB
    protanopia=[[.152286,1.052583,-.204868],[.114503,.786281,.099216],[-.003882,-.048116,1.051998]],
    deuteranopia=[[.367322,.860646,-.227968],[.280085,.672501,.047413],[-.01182,.04294,.968881]],
    tritanopia=[[1.255528,-.076749,-.178779],[-.078411,.930809,.147602],[.004733,.691367,.3039]])

def as_seen(rgb, eye):
    if eye=='usual': return rgb
    lin = np.where(rgb<=.04045, rgb/12.92, ((rgb+.055)/1.055)**2.4) @ np.array(machado[eye]).T
    lin = lin.clip(0,1)
    return np.where(lin<=.0031308, lin*12.92, 1.055*lin**(1/2.4)-.055)

@pytest.mark.parametrize('eye', ['usual',*machado])
def test_the_colour_map_rises_for_every_eye(eye):
    "Evenly too: no step of the hundred is more than three times the mean"
    light = luminance(as_seen(
        plt.get_cmap(inspect.signature(show_heat).parameters['cmap'].default)(np.linspace(0,1,101))[:,:3], eye))
    step = np.diff(light)
    assert (step>0).all() and step.max()<3*step.mean()

@pytest.mark.parametrize('eye', ['usual',*machado])
@pytest.mark.parametrize('grey', [0,60,128,200,255])
def test_heat_is_bright_on_any_image(grey, eye):
    "A ramp of heat over an even image gets lighter and never darker, and ends well above the image"
    heat = torch.linspace(0,1,64).expand(64,64)
    light = luminance(as_seen(axes_image(show_heat(Image.fromarray(np.full((64,64,3), grey, np.uint8)), heat)), eye))[0]
    assert (np.diff(light)>-.05).all() and light[-1]-light[0]>15

@pytest.mark.parametrize('n', [1, 2, 4, 6])
def test_heat_over_any_number_of_channels(n):
    x,heat = torch.rand(n,12,12),torch.rand(4,4)
    ax = show_heat(x, heat)
    assert ax.images[0].get_array().shape==(12,12,3)
    shown = show_heat(x, None).images[0].get_array()
    assert np.allclose(shown, (x[:3] if n>2 else x[:1].expand(3,-1,-1)).permute(1,2,0))

def test_attention_is_followed_again_after_an_export(few, tmp_path, quiet):
    "The callback of a loaded learner stopped the fit with an `AttributeError`"
    learn = digits_learner(few, bs=8, cbs=HeatDrift(n=2))
    learn.path = tmp_path
    quiet(learn, 'fit', 1)
    learn.export()
    new = load_learner(tmp_path/'export.pkl')
    new.dls = learn.dls
    quiet(new, 'fit', 2)
    assert list(new.heat_drift.moved().index)==[1,2] and len(learn.heat_drift.maps)==1

@pytest.mark.parametrize('look', [probe, show_where, heat_on, lambda learn,o: heats_of_labels(learn, o, '3')])
def test_a_folder_is_not_an_image(few, trained, look):
    with pytest.raises(IsADirectoryError, match='is a folder: give the files in it, such as `get_image_files'): look(trained, few/'valid')

_long = ['Labrador retriever (golden retriever)', 'n02085620-Chihuahua', 'bg;red one 0.30, bg;blue 0.70', 'cat', 'a'*200]

@pytest.mark.parametrize('size', [.8,1.1,2.])
@pytest.mark.parametrize('cells', [False,True])
def test_captions_do_not_cover_each_other(size, cells):
    "Long names of classes were drawn over those of the next image"
    img = Image.new('RGB', (40,30))
    if cells: axs = show_grid([[(img,None,o) for o in _long]]*2, ['row']*2, size=size)
    else: axs = show_heats([img]*5, torch.rand(5,4,4), captions=_long, size=size)
    fig = axs[0][0].figure
    fig.canvas.draw()
    for row in axs[:2 if cells else 1]:
        boxes = [ax.title.get_window_extent() for ax in row]
        assert all(a.x1<=b.x0 for a,b in zip(boxes, boxes[1:])) and max(o.y1 for o in boxes)<=fig.bbox.height
    if cells: assert max(ax.title.get_window_extent().y1 for ax in axs[1])<=min(ax.get_window_extent().y0 for ax in axs[0])

def test_a_name_is_no_formula():
    "A class called so stopped the drawing"
    name,img = r'$\fifty{', Image.new('RGB', (8,8))
    axs = show_heats([img], torch.rand(1,4,4), [name+'$'], captions=[name+'$'])
    show_heat(img, title=name+'$')
    axs[0][0].figure.canvas.draw()
    plt.gcf().canvas.draw()

@pytest.fixture(scope='module')
def sides(tmp_path_factory):
    "A learner of digits below five or not, with a single output; it predicts both"
    path = digits(tmp_path_factory.mktemp('sides')/'digits', n=80)
    set_seed(3)
    files = get_image_files(path/'train').sorted()
    dls = ImageDataLoaders.from_path_func(path, files, lambda f: int(f.parent.name)>=5, valid_pct=.3, seed=1, bs=8, num_workers=0)
    learn = Learner(dls, small_net(n_out=1), loss_func=BCEWithLogitsLossFlat())
    learn.loss_func.activation,learn.loss_func.decodes = torch.sigmoid,lambda x: (x>.5).long()
    with learn.no_bar(), learn.no_logging(): learn.fit(8, 1e-2)
    return learn

@pytest.mark.filterwarnings('ignore::proxy_attention.core.ProxyWarning') # of heatmaps without heat
def test_a_single_output_has_a_prediction_and_its_probability(sides):
    "The prediction is named as the label is, and its probability is that of the predicted side"
    interp = ProxyInterpretation.from_learner(sides)
    n = len(interp.losses)
    rows = interp.decoded(range(n))
    with torch.no_grad(): p = torch.cat([sides.model.eval()(b[0]) for b in sides.dls.valid]).sigmoid()[:,0]
    assert [o[2] for o in rows]==[str(bool(o>.5)) for o in p] and {o[1] for o in rows}=={o[2] for o in rows}=={'False','True'}
    assert [o[3] for o in rows]==pytest.approx(torch.maximum(p, 1-p).tolist(), abs=1e-5)
    axs = interp.plot_where()
    assert [o.get_title() for o in axs]==[f'{k} ({v})' for k,v in zip(*np.unique([o[2] for o in rows], return_counts=True))]
    names = [o.get_title() for o in interp.compare_with(sides, k=n)[1]]
    assert names==[rows[i][2] for i in (interp.losses*0).topk(n).indices]

@pytest.mark.parametrize('ask', ['confusion_matrix','print_classification_report','most_confused'])
def test_counting_restores_the_rng_and_the_learner(trained, ask, capsys):
    "As every other pass of an interpretation"
    interp = ProxyInterpretation.from_learner(trained)
    trained.model.train()
    was,rng,py = dict(trained.__dict__),torch.get_rng_state(),random.getstate()
    getattr(interp, ask)()
    assert torch.equal(torch.get_rng_state(), rng) and random.getstate()==py and trained.model.training
    assert trained.__dict__.keys()==was.keys() and all(trained.__dict__[k] is was[k] for k in ('dl','pred','xb') if k in was)

def test_all_pictures_of_numbers_explain_the_same(few, monkeypatch):
    "`show_heats` explains the distance from the same centre as `heats`"
    import proxy_attention.interpret.interpretation as module
    files = get_image_files(few/'train').sorted()[:24]
    dls = DataBlock((ImageBlock,RegressionBlock), get_y=lambda f: float(f.parent.name), splitter=IndexSplitter(range(8))).dataloaders(
        files, bs=8, num_workers=0)
    learn = Learner(dls, small_net(n_out=1), loss_func=MSELossFlat())
    with learn.no_bar(), learn.no_logging(): learn.fit(3, 1e-2)
    interp,got = ProxyInterpretation.from_learner(learn),[]
    monkeypatch.setattr(module, '_show_heats', lambda imgs,heats,*args,**kwargs: got.extend(heats) or np.empty((2,8), object))
    monkeypatch.setattr(module, '_draw_labels', lambda *args: None)
    interp.show_heats(range(8))
    assert torch.equal(got[0], interp.heats(range(8)))

def test_where_is_drawn_over_what_is_explained(few):
    "With `whole=False`, the picture is the view of the heatmap, a crop"
    files = get_image_files(few/'train').sorted()[:12]
    dls = ImageDataLoaders.from_path_func(few, files, lambda f: f.parent.name, bs=4, num_workers=0, item_tfms=CropPad(16))
    learn = Learner(dls, small_net(n_out=dls.c), loss_func=CrossEntropyLossFlat())
    for whole,side in ((True,32),(False,16)):
        axs = show_where(learn, files[:2], whole=whole)
        assert axs[0,0].images[0].get_array().shape[:2]==axs[1,0].images[0].get_array().shape[:2]==(side,side)
    seen = axs[0,0].images[0].get_array()
    should = np.asarray(PILImage.create(files[0]))[8:24,8:24]/255
    assert np.abs(seen-should).max()<.01

def test_a_heatmap_with_a_gradient_is_shown():
    assert show_heat(torch.rand(3,8,8), torch.rand(4,4, requires_grad=True)) is not None
