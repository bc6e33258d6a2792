"Segmentation: what is explained, which layer, what travels with the mask, and what is said of it"
import contextlib, io, warnings
import pytest, torch, pytorch_grad_cam, torchvision
from pytorch_grad_cam.utils.model_targets import SemanticSegmentationTarget
from fastai.vision.all import *
from proxy_attention.all import *
from proxy_attention.attribution.layers import find_layers, outputs_of
from proxy_attention.attribution.heatmap import HeatmapStore, normalize_heat, resize_heat
from proxy_attention.attribution.tasks import PixelLabels, Task
import proxy_attention.data.pixels as pixels
from proxy_attention.data.pixels import PixelNet, pixel_bed, pixel_classes, pixel_learner
from proxy_attention.masking.labels import by_area, ignored
from proxy_attention.masking.masker import Masker
from proxy_attention.proxy.record import served_image
from proxy_attention.proxy.serving import Proxies, ServedItem, labeling_for, serving
from proxy_attention.interpret.swaps import probe_donors
from proxy_attention.interpret.pixels import ContextProbe, probe_pixels

pytestmark = pytest.mark.filterwarnings('ignore::proxy_attention.core.ProxyWarning')
usual = dict(select='all', area=.3, start=1, every=None, p=1.)
leaves_out = CrossEntropyLossFlat(axis=1, ignore_index=255)

@pytest.fixture(scope='module')
def bed(tmp_path_factory): return pixel_bed(tmp_path_factory.mktemp('pixels')/'bed', n=24, size=32)

def learner(bed, seed=0, **kwargs): return pixel_learner(bed, seed, widths=(4,8,8), **kwargs)

def fitted(bed, epochs=2, cbs=(), proxy=None, **kwargs):
    learn = learner(bed, **kwargs)
    if proxy is not None: learn.add_cb(ProxyAttention(**(usual|proxy)))
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs, 1e-3, cbs=cbs)
    return learn

# --- what is explained

@pytest.mark.parametrize('of', ['pred','label'])
def test_gradcam_agrees_with_pytorch_grad_cam(bed, of):
    learn = fitted(bed, 1)
    (x,y),net = learn.dls.valid.one_batch(), learn.model.eval()
    x,y = x.as_subclass(Tensor)[:4],y.as_subclass(Tensor)[:4]
    region = net(x).argmax(1) if of=='pred' else y
    c = int(region.flatten().mode().values)
    ours = GradCAM(net, layer='mid', target=Region(c, of))(x, y)
    with contextlib.redirect_stderr(io.StringIO()):
        theirs = pytorch_grad_cam.GradCAM(model=net, target_layers=[net.mid])(
            input_tensor=x, targets=[SemanticSegmentationTarget(c, (o==c).float().numpy()) for o in region])
    assert ours.amax((1,2)).max()>0
    torch.testing.assert_close(normalize_heat(resize_heat(ours, (32,32))), torch.from_numpy(theirs), atol=2e-3, rtol=0)

def test_a_region_is_the_mean_score_of_a_class():
    out = torch.randn(2,3,4,4)
    at = out.argmax(1)
    for c in range(3):
        said = Region(c)(out)
        for o,a,s in zip(out, at, said): assert float(s)==pytest.approx(float(o[c][a==c].mean()) if (a==c).any() else 0., abs=1e-5)
    each = [[o[c][a==c].mean() for c in a.unique().tolist()] for o,a in zip(out, at)]
    torch.testing.assert_close(Region()(out), torch.stack([torch.stack(o).mean() for o in each]))
    y = torch.randint(3, (2,4,4))
    y[0,0] = 255 # left out by the loss: belongs to no class
    assert float(Region(1, 'label')(out, y)[0])==pytest.approx(float(out[0,1][y[0]==1].mean()), abs=1e-5)
    small = y[:,::2,::2].repeat_interleave(2, 1).repeat_interleave(2, 2)
    torch.testing.assert_close(Region(1, 'label')(out, small[:,::2,::2]), Region(1, 'label')(out, small)) # labels of another size
    one = torch.randn(2,1,4,4) # a single output separates two classes
    assert float(Region(1)(one)[0])==pytest.approx(float(one[0,0][one[0,0]>0].mean()), abs=1e-5)

def test_a_class_is_named(bed):
    learn = learner(bed)
    task = find_task(learn)
    assert type(task) is PixelLabels and task.ignored is None and repr(task.target('tree'))=='class 3 over the prediction'
    files = learn.dls.valid_ds.items[:2]
    assert torch.equal(heat_on(learn, files, target='tree'), heat_on(learn, files, target=Region(3)))
    assert not torch.equal(heat_on(learn, files, target='label'), heat_on(learn, files, target='ground'))
    with pytest.raises(ValueError, match="'tre', did you mean 'tree'"): heat_on(learn, files, target='tre')
    with pytest.raises(ValueError, match='class 9, but the model has 4'): heat_on(learn, files, target=9)

# --- the layer

def test_the_layer_is_the_last_on_the_coarsest_grid():
    net = PixelNet()
    layers = find_layers(net, torch.randn(1,3,64,64))
    assert [o.grid for o in layers]==[(32,32),(16,16),(8,8),(4,4)] and find_layer(net, torch.randn(1,3,64,64)).name=='mid'
    assert find_layer(net, torch.randn(1,3,32,32)).grid==(8,8) # a grid of 2×2 locates nothing
    assert 'last' not in [o.name for o in layers] # scores show only what is predicted

class Scores(nn.Module):
    "Nothing but a map of scores"
    def __init__(self):
        super().__init__()
        self.only = nn.Conv2d(3,4,1)
    def forward(self, x): return self.only(x)

def test_a_model_without_a_layer_is_told_so():
    with pytest.raises(ValueError, match='No layer of this Scores is on a grid.*\n  only'): find_layer(Scores(), torch.randn(1,3,32,32))

def test_a_unet_and_a_dictionary(tmp_path):
    dls = learner(pixel_bed(tmp_path/'bed', n=8, size=32), bs=4).dls
    learn = unet_learner(dls, resnet18, pretrained=False, n_out=4, normalize=False)
    layer = find_layer(learn.model, torch.randn(1,3,32,32))
    assert layer.grid==(8,8) and find_layer(learn.model, torch.randn(1,3,128,128)).grid==(4,4)
    learn.add_cb(ProxyAttention(**usual))
    with learn.no_bar(), learn.no_logging(): learn.fit(2, 1e-4)
    pa = learn.proxy_attention
    assert len(pa.store)==6 and set(pa.log.method)=={f'LayerCAM of the its class over the prediction at {layer}'}
    net = torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4).eval()
    assert isinstance(net(torch.randn(1,3,64,64)), dict) and LayerCAM(net, target=Region(0))(torch.randn(2,3,64,64)).shape[0]==2
    with pytest.raises(TypeError, match='returns a tuple'): outputs_of((1,2), net)

# --- what travels with the mask

class Coded:
    "A bed of pictures whose pixels say their label: 40 times the number of the class"
    def __init__(self, sizes=((32,32),(32,32)), n=8):
        rng = np.random.default_rng(0)
        self.masks = [PILMask.create(rng.integers(0, 4, sizes[i%2]).astype(np.uint8)) for i in range(n)]
        self.imgs = [PILImage.create(np.repeat(np.array(o)[...,None]*40, 3, 2).astype(np.uint8)) for o in self.masks]
    def dls(self, bs=4, **kwargs):
        return DataBlock((ImageBlock, MaskBlock(pixel_classes)), get_x=lambda i: self.imgs[i], get_y=lambda i: self.masks[i],
                         splitter=IndexSplitter([0])).dataloaders(list(range(len(self.imgs))), bs=bs, num_workers=0, **kwargs)

def store_of(n, side=4):
    store = HeatmapStore()
    store.update(torch.arange(n), torch.rand(n, side, side, generator=torch.Generator().manual_seed(0)))
    return store

def task_of(**kwargs): return PixelLabels(pixel_classes, **kwargs)

def items_served(dls, labels, masker=None, task=None, p=1.):
    n = len(dls.train_ds)
    masker,task = masker or Masker('area', 'swap', area=.4),task or task_of(ignored=255)
    proxies = Proxies(store_of(n), masker, 'replace', p, labels=labels, task=task)
    with serving(dls.train, proxies, seed=1) as note: got = [(dls.train.create_item(i),note(i)) for i in range(n)]
    return got,proxies

def test_the_labels_come_along_with_the_pixels():
    dls = Coded().dls()
    own,_ = items_served(dls, 'own')
    mixed,_ = items_served(dls, 'mix')
    for i,((img,y),note) in enumerate(mixed):
        a,b = np.array(img)[...,0],np.array(y)
        assert type(y) is PILMask and np.array_equal(a, b*40) and note[1]==1 and note[2]>=0 # each pixel has the label that it says
        assert note[4]+note[5]==10**6 and .3<note[5]/1e6<.5 # the weights are the areas
        assert np.array_equal(np.array(own[i][0][0])[...,0], a) and np.array_equal(np.array(own[i][0][1]), np.array(dls.train_ds[i][1]))
        assert (b!=np.array(dls.train_ds[i][1])).any()

def test_masked_pixels_are_ignored():
    dls = Coded().dls()
    got,proxies = items_served(dls, 'ignore', Masker('area', 'zero', area=.4)) # no donor is needed
    for i,((img,y),note) in enumerate(got):
        y,was = np.array(y),np.array(dls.train_ds[i][1])
        assert ((y==255)==(np.array(img)[...,0]==0))[was>0].all() and np.array_equal(y[y!=255], was[y!=255])
        assert (y==255).mean()==pytest.approx(note[3]/1e6, abs=1e-5) and note[4]/1e6==pytest.approx(1-note[3]/1e6, abs=1e-5)
    out,y = torch.randn(1,4,32,32),torch.from_numpy(y.astype(np.int64))[None]
    seen = y[0]!=255
    assert float(leaves_out(out, y))==pytest.approx(float(F.cross_entropy(out[0][:,seen].T, y[0][seen])), abs=1e-5)

@pytest.mark.parametrize('labels', ['mix','ignore'])
def test_image_and_mask_of_different_sizes(labels):
    bed = Coded()
    bed.masks = [PILMask.create(o.resize((16,16), Image.NEAREST)) for o in bed.masks]
    for (img,y),_ in items_served(bed.dls(), labels)[0]: assert img.size==(32,32) and y.size==(16,16) and type(y) is PILMask

@pytest.mark.parametrize('labels', ['own','mix','ignore'])
def test_pixels_and_labels_stay_aligned_through_augmentation(labels):
    "The picture is made a mask too, so that both are warped by nearest pixels: then they agree bit for bit"
    dls = Coded().dls(item_tfms=RandomResizedCrop(32, min_scale=.5))
    tfms = Pipeline([IntToFloatTensor(), *aug_transforms(max_warp=.4, max_rotate=30, p_affine=1., max_lighting=0)], split_idx=0)
    got,_ = items_served(dls, labels)
    pairs = []
    for i,((img,y),_) in enumerate(got):
        coded = PILMask.create(np.array(dls.train_ds[i][0] if labels=='own' else img)[...,0]//40)
        pairs.append(dls.train.after_item((coded, y)))
    stacked = [TensorMask(torch.stack([o[k].squeeze(0) for o in pairs])) for k in (0,1)]
    _,a,b = tfms((TensorImage(torch.rand(len(got),3,32,32)), *stacked)) # the numbers are drawn for the picture
    counts = b!=255
    assert torch.equal(a[counts], b[counts]) and counts.all()==(labels!='ignore')
    assert not torch.equal(b.as_subclass(Tensor), stacked[1].as_subclass(Tensor)) # it was warped

def test_tensors_travel_too():
    task,mask = task_of(ignored=255),Image.new('1', (4,4))
    mask.paste(1, (0,0,2,4))
    own,theirs = torch.zeros(4,4, dtype=torch.long),torch.ones(4,4, dtype=torch.long)
    new = task.travel(TensorMask(own), theirs, mask, (.5,.5))
    assert new.sum()==8 and type(new) is TensorMask
    assert (task.travel(own, None, mask, (.5,0.))[:,:2]==255).all() and not own.any()

@pytest.mark.parametrize('labels,how,task,says', [
    ('mix', dict(fill='move'), {}, 'the fill move changes or moves the pixels of the donor'),
    ('mix', dict(fill='look', rule='everything'), {}, 'the fill look changes or moves'),
    ('mix', dict(edge=.1), {}, 'a soft edge blends two images'),
    ('mix', dict(fill='blend'), {}, 'takes no donor'),
    ('mix_area', dict(edge=.1), {}, 'a soft edge'),
    (lambda mask: (.5,.5), {}, {}, 'here each pixel has a label'),
    ('ignore', {}, {}, r'loss_func=CrossEntropyLossFlat\(axis=1, ignore_index=255\)')])
def test_what_cannot_travel_is_refused(labels, how, task, says):
    with pytest.raises((ValueError,TypeError), match=says): labeling_for(labels, Masker(**how), task_of(**task))

def test_ignore_is_for_pixels(bed, few):
    learn = digits_learner(few, cbs=ProxyAttention(**usual, labels='ignore'))
    with learn.no_bar(), learn.no_logging(), pytest.raises(TypeError, match="an image has one label per image.*'own' or 'mix'"):
        learn.fit(2)
    with pytest.raises(TypeError, match='ignore_index=255'): fitted(bed, proxy=dict(labels='ignore'))
    with pytest.raises(ValueError, match='the fill move'): fitted(bed, proxy=dict(labels='mix', fill='move'))
    assert labeling_for('mix', Masker(), task_of()) is by_area
    assert labeling_for('ignore', Masker(fill='zero'), task_of(ignored=0)) is ignored

# --- in training

class Labels(Callback):
    "The labels of each batch"
    order = 100
    def __init__(self): self.got = []
    def before_batch(self):
        if self.training: self.got.append((self.epoch, self.y.clone().as_subclass(Tensor)))

@pytest.mark.parametrize('losses', ['exact','running'])
@pytest.mark.parametrize('labels', ['own','mix','ignore'])
def test_a_fit(bed, tmp_path, labels, losses, weights):
    watch = Labels()
    learn = fitted(bed, 3, watch, dict(labels=labels, losses=losses, folder=tmp_path/'run', save_images=True),
                   loss_func=leaves_out, batch_tfms=aug_transforms(size=32))
    pa = learn.proxy_attention
    assert len(pa.store)>9 and pa.interp.preds.shape==(18,4) and pa.interp.preds.dtype==torch.bool # classes, and no maps
    assert any((y==255).any() for _,y in watch.got)==(labels=='ignore')
    assert set(pa.log.targ)<={'ground;car;tree','ground;boat;tree'} and pa.log.equals(pa.log)
    log = pd.read_csv(tmp_path/'run'/'proxy_log.csv')
    assert set(log.targ)<={'ground;car;tree','ground;boat;tree'} and (tmp_path/'run'/'manifest.csv').exists()
    assert torch.isfinite(pa.interp.losses[pa.interp.known]).all()
    for i in pa.store.idxs[:3]:
        rec = pa.fit_state.record
        if rec.was_served(int(i)): assert isinstance(served_image(rec, pa.proxies(), learn.dls.train_ds, int(i)), PILImage)
    axs = pa.show(3)
    assert len(axs)==3 and all(len(o.collections) for o in axs[0]) # the outlines of the labels are drawn

def test_exact_losses_are_those_of_each_image(bed):
    learn = fitted(bed, 2, proxy={})
    found = learn.proxy_attention.settings.losses.interpret(learn)
    x,y = map(torch.cat, zip(*[(a.as_subclass(Tensor),b.as_subclass(Tensor)) for a,b in
              learn.dls.test_dl(learn.dls.train_ds.items, with_labels=True)]))
    with torch.no_grad(): each = F.cross_entropy(learn.model.eval()(x), y, reduction='none').mean((1,2))
    torch.testing.assert_close(found.losses, each, atol=1e-5, rtol=0)

@pytest.mark.parametrize('labels', ['own','mix','ignore'])
def test_idle_is_bit_exact(bed, labels, weights, same):
    tfms = dict(loss_func=leaves_out, batch_tfms=aug_transforms(size=32))
    assert same(weights(fitted(bed, proxy=dict(labels=labels, p=0.), **tfms)), weights(fitted(bed, **tfms)))

class Cut(Callback):
    order = 99
    def after_epoch(self):
        if self.epoch==1: raise KeyboardInterrupt

@pytest.mark.parametrize('labels', ['mix','ignore'])
def test_resumed_is_bit_exact(bed, tmp_path, labels, weights, same):
    def run(folder, *cbs):
        cbs = [Checkpoint(tmp_path/folder, resume=True), *cbs]
        return fitted(bed, 4, cbs, dict(labels=labels, p=.5), loss_func=leaves_out)
    whole = run('whole')
    with contextlib.suppress(KeyboardInterrupt): run('cut', Cut())
    again = run('cut')
    assert same(weights(whole), weights(again)) and whole.proxy_attention.log.equals(again.proxy_attention.log)

# --- interpretation and probe

@pytest.fixture(scope='module')
def interp(bed):
    learn = fitted(bed, 1)
    learn.model.eval()
    return ProxyInterpretation.from_learner(learn)

def test_top_losses_with_both_outlines(interp):
    axs = interp.plot_top_losses(3, heatmap=True)
    assert all(ax.get_title().count('/')==3 and ax.collections for ax in axs[:3]) and 'PixelLabels' not in repr(interp)
    rows = interp.decoded([0,1])
    assert rows[0].label in ('ground;car;tree','ground;boat;tree') and rows[0].own.shape==(32,32)==rows[0].said.shape and 0<rows[0].prob<1
    assert len(interp.show_heats([0,1]))==2 and len(interp.compare_with(interp.learn, [0,1]))==3

def test_confusion_and_where(interp):
    cm = interp.confusion_matrix()
    y = torch.cat([b[1] for b in interp.dl]).as_subclass(Tensor)
    assert cm.shape==(4,4) and cm.sum()==y.numel() and cm.sum(1).tolist()==y.flatten().bincount(minlength=4).tolist()
    titles = [ax.get_title() for ax in interp.plot_where(by='label') if ax.get_title()]
    assert titles and all(o.split(' (')[0] in pixel_classes for o in titles)

def test_show_where_and_drift(bed):
    learn = fitted(bed, 2, drift := HeatDrift(n=2, target='tree'))
    assert len(show_where(learn, learn.dls.valid_ds.items[:2], target='boat'))==2
    assert len(drift.show())==3 and drift.pictures[0][1].startswith('ground;')
    with pytest.raises(ValueError, match="'tres', did you mean 'tree'"): fitted(bed, 1, HeatDrift(target='tres'))
    with pytest.raises(ValueError, match="'tres', did you mean 'tree'"): fitted(bed, proxy=dict(target='tres'))
    fitted(bed, proxy=dict(target='tree'))

class Reads(nn.Module):
    "Finds trees by their darkness; the class of a bright square is that of the colour of the patch, wherever it is"
    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(3,8,1)
    def forward(self, x):
        r,g,b = x.unbind(1)
        grey = ((r-g).abs()<.25)&((b-g).abs()<.25)
        tree,square = grey&(g<.33),grey&(g>.58)
        red = ((r-b>.4).flatten(1).sum(1)>=(b-r>.4).flatten(1).sum(1))[:,None,None]
        return torch.stack([(~tree&~square).float(), (square&red).float(), (square&~red).float(), tree.float()], 1)*9+self.body(x)[:,:4]*0

@pytest.fixture(scope='module')
def reads(bed):
    learn = learner(bed)
    learn.model = Reads()
    return learn

def test_the_probe_finds_what_a_class_is_read_off(reads):
    found = probe(reads, 'train', layer='body')
    assert set(found.leans)=={'car','boat'} and found.leans['car']==['around']
    row = found['car'].loc['around']
    assert row.changes>.9 and row.control<.1 and row.to=='boat' and found['tree'].loc['around'].changes<.1
    said = found.verdict()
    assert "mostly 'boat'" in said and "So 'car' leans on what is around it." in said and '<table' in found._repr_html_()
    one = probe(reads, 'train', layer='body', label='tree')
    assert one.names==['tree'] and not one.leans
    with pytest.raises(KeyError, match="no class 'tre', did you mean 'tree'"): found['tre']
    with pytest.raises(ValueError, match="no class 'trees', did you mean"): probe(reads, label='trees')

def test_what_cannot_be_probed_is_told(bed, reads, few):
    alike = [o for o in reads.dls.train_ds.items if int(o.name[:4])%2==0][:6]
    found = probe(reads, alike, layer='body')
    assert 'The same classes are predicted in all 6 images' in found.verdict() and 'give `items` that differ' in found.verdict()
    assert 'train for longer' in probe(reads, alike[:2], layer='body').verdict()
    with pytest.raises(TypeError, match='`objects` is for classes of whole images'): probe(reads, objects={})
    with pytest.raises(TypeError, match="label='2' chooses one of several labels, or a class"): probe(digits_learner(few), label='2')

def test_refused_elsewhere(bed):
    learn = learner(bed)
    with pytest.raises(TypeError, match='asks a probe of whole images.*a label for each pixel'): learn.fit_proxy(2)
    with pytest.raises(TypeError, match='needs one label per image, but this data has a label for each pixel'): learn.fit_head()
    with pytest.raises(TypeError, match='A comparison counts images.*JaccardCoeffMulti'):
        compare(lambda seed: learner(bed, seed), arms=['no proxy'], seeds=1, epochs=2, bar=False)
    with pytest.raises(TypeError, match='show_where'): explain_images(learn, bed/'images')

def test_a_unet_is_copied_with_what_it_has_stored(bed):
    body = nn.Sequential(nn.Conv2d(3,4,3,2,1), nn.ReLU(), nn.Conv2d(4,8,3,2,1), nn.ReLU())
    net = DynamicUnet(body, 4, (32,32))
    net(torch.randn(2,3,32,32)).sum().backward() # its hooks now store outputs with gradients
    with pytest.raises(RuntimeError): deepcopy(net)
    assert Suspect(net).model is not net and net.sfs[0].stored is not None

def test_a_bed_that_was_interrupted_is_made_again(tmp_path, monkeypatch):
    "Half of a bed was taken for the whole one"
    made,left = pixels.pixel_image,[3]
    def killed(*args):
        left[0] -= 1
        if not left[0]: raise KeyboardInterrupt
        return made(*args)
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(pixels, 'pixel_image', killed)
        pixel_bed(tmp_path/'bed', n=8, size=32)
    assert len(list((pixel_bed(tmp_path/'bed', n=8, size=32)/'images').iterdir()))==8
    assert [o.name for o in tmp_path.iterdir()]==['bed']

@pytest.mark.limit(20)
def test_an_image_without_room_is_refused():
    "It was drawn for ever"
    with pytest.raises(ValueError, match='size=8 should be 12 or more: a vehicle'): pixels.pixel_image(np.random.default_rng(0), size=8)
    assert pixels.pixel_image(np.random.default_rng(0), size=12)[0].size==(12,12)

def test_scores_of_pixels(bed):
    "The region of the label can be explained, and metrics of the model are refused in a sentence"
    learn = fitted(bed, 1)
    files = learn.dls.valid_ds.items[:4]
    masks = [torch.rand(32,32)>.5 for _ in files]
    scored = explanation_scores(learn, files, masks=masks, metrics='energy', target='label')
    assert scored.energy.between(0, 1).all()
    for kw in ({}, dict(masks=masks), dict(target='label')):
        with pytest.raises(TypeError, match='need the probability of a class of the image, and this data has a label for each pixel'):
            explanation_scores(learn, files, **kw)

class Halves(nn.Module):
    "Predicts class 1 in the left half; in the right half class 2 if an image is bright, else class 0"
    def __init__(self):
        super().__init__()
        self.c = nn.Conv2d(3, 3, 1)
    def forward(self, x):
        bright = (x.mean((1,2,3))>1).float()[:,None,None]
        left = (torch.arange(x.shape[-1])<x.shape[-1]//2).float().expand(x.shape[2:])
        return 1e-3*self.c(x) + torch.stack([(1-left)*(1-bright), left.expand(len(x), -1, -1), (1-left)*bright], 1)

def test_pixels_that_the_loss_leaves_out_do_not_count():
    "In the overlap of a class with its label, whatever is predicted there"
    x,y = torch.rand(12,3,32,32),torch.zeros(12,32,32, dtype=torch.long)
    x[6:] += 1
    y[:,:16,:16],y[:,16:,:16] = 1,255 # the lower left is left out, and predicted as class 1
    def asked(ignored):
        task = PixelLabels(['ground','left','bright'], ignored=ignored)
        return probe_pixels(Halves(), task, [(x,y)], 'GradCAM', None, 'c', (.1,), (.3,), probe_donors['alike'], 0, 'images',
                            {}, iter, label='left')
    assert asked(255).iou('left')==1 and asked(None).iou('left')==.5

def test_a_class_of_few_pixels_is_told():
    "No percentage is made of nothing"
    table = pd.DataFrame(dict(images=6, iou=.9, masked=.5, changes=[np.nan]*4, control=np.nan, carried=np.nan, to=''),
                         index=pd.MultiIndex.from_product([['dot'],['around','hot','border','look']], names=['class','kind']))
    said = ContextProbe(table, dict(dot=6), 6).verdict()
    assert 'nan' not in said and "'dot' covers too few pixels" in said
