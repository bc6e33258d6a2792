"A proxy image that carries the labels of both images: weights, losses, what mixes batches on top, and what is told of it"
import pytest, timm, torch, torch.nn.functional as F
from fastai.vision.all import *
from proxy_attention.all import *
from proxy_attention.attribution.heatmap import HeatmapStore
from proxy_attention.data.digits import labels_learner
from proxy_attention.masking.labels import MixedLoss, by_area, by_heat, labelings
from proxy_attention.masking.masker import Masker
from proxy_attention.proxy.serving import Proxies

pytestmark = pytest.mark.filterwarnings('ignore::proxy_attention.core.ProxyWarning')
usual = dict(select='all', area=.3, start=1, every=None, p=1.)

class Watch(Callback):
    "What the loss gets to see of each batch, and what it says"
    order = 100
    def __init__(self): self.got,self.after = [],[]
    def after_pred(self):
        if self.training: self.got.append((self.epoch, self.training, self.pred.detach().clone(), self.yb[0].detach().clone()))
    def after_loss(self):
        if self.training: self.after.append((self.yb[0].ndim, float(self.loss)))

def fitted(few, cbs=(), epochs=2, loss_func=None, watch=None, net=None, **kwargs):
    learn = digits_learner(few, seed=0)
    if loss_func is not None: learn.loss_func = loss_func
    if net is not None: learn.model = net
    learn.add_cb(ProxyAttention(**(usual|kwargs)))
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs, 1e-3, cbs=[*L(cbs), *L(watch)])
    return learn

def mixed(watch): return [(o,told) for o,told in zip(watch.got, watch.after) if o[3].ndim==2]

def assert_of_both_labels(watch, labels):
    "Each loss of mixed labels is the weighted sum of the losses of both; by area, their weights add up to one"
    found = mixed(watch)
    assert found
    for (_,_,pred,y),(ndim,loss) in found:
        own,other = (F.cross_entropy(pred, o, reduction='none') for o in (y[:,0],y[:,1].clamp(min=0)))
        assert loss==pytest.approx(float((own*y[:,2]/1e6+other*y[:,3]/1e6).mean()), abs=1e-5) and ndim==1
    if labels=='mix_area': assert all((y[:,2:].sum(1)-10**6).abs().max()<=1 for (*_,y),_ in found)

@pytest.mark.parametrize('labels', ['mix','mix_area'])
def test_the_loss_is_that_of_both_labels(few, labels):
    watch = Watch()
    learn = fitted(few, watch=watch, labels=labels)
    assert_of_both_labels(watch, labels)
    assert all(e==1 and training for (e,training,*_),_ in mixed(watch))
    assert type(learn.loss_func) is CrossEntropyLossFlat and not learn.cbs.filter(lambda o: type(o).__name__=='MixLabels')

def test_what_is_told_is_what_was_trained_on(few):
    watch = Watch()
    learn = fitted(few, watch=watch, labels='mix_area')
    pa,targs = learn.proxy_attention,learn.proxy_attention.interp.targs
    rows = pa.served
    assert (rows.donor_weight-rows.area).abs().max()<.05 and (rows.label_weight+rows.donor_weight-1).abs().max()<1e-5
    told = Counter((int(targs[r.item]), int(targs[r.donor]), round(r.donor_weight*1e6)) for r in rows.itertuples())
    seen = Counter((*map(int, o[:2]),int(o[3])) for (*_,y),_ in mixed(watch) for o in y.tolist() if o[3])
    assert seen and not seen-told
    titles = [o.get_title() or o.get_xlabel() for o in np.ravel(pa.show(4))]
    assert any(', ' in o for o in titles)

def test_nothing_is_mixed_where_nothing_is_served(few, weights, same):
    a,b = (fitted(few, p=0., **kw) for kw in ({}, dict(labels='mix')))
    assert same(weights(a), weights(b))

@pytest.mark.parametrize('over', [MixUp, CutMix])
def test_batches_are_mixed_on_top(few, over):
    "Each row's loss is the mixture, of two images, of the loss of two labels each"
    class Then(Watch):
        order = 101
        def after_loss(self):
            if not self.training: return
            y = self.got[-1][3]
            if y.ndim==1: return self.after.append(None)
            lam,y1 = learn.mix.lam,learn.mix.yb1[0]
            def each(y): return sum(F.cross_entropy(self.pred, y[:,k].clamp(min=0), reduction='none')*y[:,k+2]/1e6 for k in (0,1))
            self.after.append((float(self.loss), float(torch.lerp(each(y1), each(y), lam).mean())))
    learn,watch = digits_learner(few, seed=0),Then()
    learn.add_cbs([ProxyAttention(**usual, labels='mix_area'), over()])
    learn.mix = learn.cbs.filter(risinstance(over))[0]
    with learn.no_bar(), learn.no_logging(): learn.fit(2, 1e-3, cbs=watch)
    found = [o for o in watch.after if o]
    assert found and all(a==pytest.approx(b, abs=1e-5) for a,b in found)

def own_loss(pred, y, reduction='mean'):
    return F.cross_entropy(pred.as_subclass(Tensor), y.as_subclass(Tensor), reduction=reduction)

@pytest.mark.parametrize('loss', [own_loss, LabelSmoothingCrossEntropyFlat(), FocalLossFlat(),
                                  CrossEntropyLossFlat(weight=torch.arange(1., 11.))])
def test_any_loss_that_can_be_had_per_sample(few, loss):
    learn = fitted(few, loss_func=loss, labels='mix')
    assert learn.loss_func is loss and np.isfinite(learn.recorder.losses).all()

# fastai casts a batch to plain tensors in a fit: these losses do not take its subclasses
plain_losses = dict(cross_entropy=nn.CrossEntropyLoss, focal=FocalLoss, smooth=LabelSmoothingCrossEntropy,
                    smooth_cross_entropy=partial(nn.CrossEntropyLoss, label_smoothing=.1))

@pytest.mark.parametrize('labels', ['own','mix'])
@pytest.mark.parametrize('losses', ['exact','running'])
@pytest.mark.parametrize('loss', plain_losses)
def test_losses_for_plain_tensors(few, loss, losses, labels):
    loss = plain_losses[loss]()
    learn = fitted(few, epochs=3, loss_func=loss, losses=losses, labels=labels, every=1, p=.5)
    pa = learn.proxy_attention
    assert learn.loss_func is loss and loss.reduction=='mean' and np.isfinite(learn.recorder.losses).all()
    assert len(pa.history)==2 and len(pa.served)>5 and pa.interp.losses[pa.interp.known].std()>0 # one per image
    assert (pa.served.donor_weight>0).any()==(labels=='mix')

@pytest.mark.parametrize('labels', ['own','mix'])
def test_a_loss_for_plain_tensors_under_mixup(few, labels):
    learn = fitted(few, [MixUp()], loss_func=FocalLoss(), labels=labels)
    assert np.isfinite(learn.recorder.losses).all() and len(learn.proxy_attention.served)>20

@pytest.fixture(scope='module')
def pairs(tmp_path_factory): return two_digits(tmp_path_factory.mktemp('several')/'bed', digits=(0,1,3), n_train=64, n_test=10)

@pytest.mark.parametrize('labels', ['own','mix'])
@pytest.mark.parametrize('losses', ['exact','running'])
def test_a_loss_of_several_labels_for_plain_tensors(pairs, losses, labels):
    watch,learn = Watch(),labels_learner(pairs, bs=16)
    learn.loss_func = nn.BCEWithLogitsLoss()
    learn.add_cb(ProxyAttention(**usual, losses=losses, labels=labels))
    with learn.no_bar(), learn.no_logging(): learn.fit(2, 1e-3, cbs=watch)
    assert len(learn.proxy_attention.served)>20 and learn.proxy_attention.interp.losses.std()>0
    assert any(((y>0)&(y<1)).any() for e,*_,y in watch.got if e==1)==(labels=='mix')

@pytest.mark.parametrize('labels', ['mix','mix_area'])
def test_a_vision_transformer_is_trained_on_both_labels(few, labels):
    torch.manual_seed(0)
    net = timm.models.VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=10)
    watch,how = Watch(),dict(mix=dict(rule='box', fill='move'), mix_area=dict(rule='top_cells', cells=4, fill='swap_theirs'))[labels]
    pa = fitted(few, epochs=3, watch=watch, net=net, area=None, losses='running', labels=labels, **how).proxy_attention
    assert_of_both_labels(watch, labels)
    assert 'LeGrad' in pa.fit_state.record.steps[-1]['method'] and pa.store.grids.shape[1:]==(4,4)
    assert len(pa.served)>30 and (pa.served.donor_weight>0).mean()>.9
    if labels=='mix_area': assert (pa.served.donor_weight-.25).abs().max()<.01 # 4 of 16 cells

def test_labels_are_mixed_by_the_heat_of_a_frozen_teacher(few, weights, same):
    "Every epoch ends with a step, and the heat that weights the labels is that of the teacher in all of them"
    class Heat(Callback):
        order = 90
        def after_epoch(self): seen.append(torch.as_tensor(np.asarray(self.learn.proxy_attention.store.grids)))
    teacher,seen,watch = digits_learner(few, seed=1),[],Watch()
    with teacher.no_bar(), teacher.no_logging(): teacher.fit(2, 5e-3)
    was,suspect = weights(teacher),Suspect(teacher)
    learn = fitted(few, [Heat()], epochs=4, watch=watch, attribution=suspect, labels='mix', losses='running', target='label', every=1, p=.7)
    pa = learn.proxy_attention
    assert_of_both_labels(watch, 'mix')
    assert pa.history.epoch.tolist()==[0,1,2] and same(was, weights(teacher)) and not same(was, weights(learn))
    n = len(learn.dls.train_ds)
    own = heat_on(teacher, learn.dls.train_ds.items, target='label')
    assert all(len(o)==n for o in seen) and torch.equal(seen[0], seen[-1]) and (seen[0].float()-own).abs().max()<.01
    rows,kept = pa.served,pa.proxies()
    assert len(rows)>20
    for r in rows.itertuples():
        mask,heat = pa.masker.mask_over(kept.store.at(kept.store.row(r.item)), (32,32)),[own[int(o)] for o in (r.item,r.donor)]
        assert (r.label_weight,r.donor_weight)==pytest.approx(by_heat(mask, heat[0], mask, heat[1]), abs=.02)

def test_running_losses_read_what_was_served_as_it_is(few):
    learn = fitted(few, losses='running', labels='mix', epochs=3, p=.5, every=1)
    assert len(learn.proxy_attention.history)==2

def test_metrics_in_training_see_the_own_label(few):
    learn = digits_learner(few, seed=0)
    learn.recorder.train_metrics = True
    learn.add_cb(ProxyAttention(**usual, labels='mix'))
    with learn.no_bar(), learn.no_logging(): learn.fit(2, 1e-3)
    assert len(learn.recorder.values)==2

@pytest.mark.parametrize('error', [KeyboardInterrupt, CancelFitException, CancelTrainException, CancelBatchException])
def test_the_loss_comes_back(few, error):
    class Stops(Callback):
        def after_pred(self):
            if self.training and self.epoch==1: raise error
    learn = digits_learner(few, seed=0)
    learn.add_cb(ProxyAttention(**usual, labels='mix'))
    plain = learn.loss_func
    with learn.no_bar(), learn.no_logging():
        if error is KeyboardInterrupt:
            with pytest.raises(KeyboardInterrupt): learn.fit(2, 1e-3, cbs=Stops())
        else: learn.fit(2, 1e-3, cbs=Stops())
        assert learn.loss_func is plain
        learn.fit(1, 1e-3)

@pytest.mark.parametrize('workers', [0,2])
@pytest.mark.parametrize('how', [dict(rule='box', fill='move'), dict(rule='hottest_box', fill='swap_theirs'), dict(rule='box', fill='swap'),
                                 dict(rule='top_cells', cells=6, fill='swap_theirs')])
def test_an_image_with_a_box_is_made_again_bit_for_bit(few, how, workers, tmp_path):
    dls = ImageDataLoaders.from_folder(few, train='train', valid='valid', bs=16, num_workers=workers)
    seen = []
    class See(Callback):
        def before_batch(self):
            if self.training and self.epoch==1: seen.extend((self.x.as_subclass(Tensor)*255).round().byte())
    learn = Learner(dls, digits_learner(few).model, CrossEntropyLossFlat(), metrics=accuracy)
    how = {k:v for k,v in (usual|how|dict(labels='mix')).items() if k!='area'}
    learn.add_cb(ProxyAttention(folder=tmp_path/'proxies', **how))
    with learn.no_bar(), learn.no_logging(): learn.fit(2, 1e-3, cbs=See())
    pa = learn.proxy_attention
    items = pa.served.item.tolist()
    made = {tensor(np.asarray(o)).permute(2,0,1).contiguous().numpy().tobytes() for o in pa.proxy_images(items)}
    assert len(items)>30 and {o.numpy().tobytes() for o in seen}<=made | {
        tensor(np.asarray(o[0])).permute(2,0,1).contiguous().numpy().tobytes() for o in dls.train_ds}
    assert len(made & {o.numpy().tobytes() for o in seen})>30

def test_another_box_in_each_epoch(few):
    class Each(Callback):
        order = 90
        def after_epoch(self): areas.append(self.learn.proxy_attention.served.sort_values('item').area.tolist())
    areas,learn = [],digits_learner(few, seed=0)
    learn.add_cb(ProxyAttention(select='all', rule='box', fill='move', labels='mix', start=1, every=None, p=1.))
    with learn.no_bar(), learn.no_logging(): learn.fit(3, 1e-3, cbs=Each())
    assert areas[1]!=areas[2] and len(set(areas[2]))>20

def test_refused_in_a_sentence(few):
    for labels,fill in (('mix','zero'), ('mix_area','dataset_mean')): # named as they were written
        with pytest.raises(ValueError, match=f"labels='{labels}' mixes in the label of a donor, and the fill {fill} takes no donor"):
            ProxyAttention(fill=fill, labels=labels)
    def brightest(mask): return .5,.5
    with pytest.raises(ValueError, match="labels='brightest' mixes in"): ProxyAttention(fill='zero', labels=brightest)
    with pytest.raises(ValueError, match="did you mean 'mix'"): ProxyAttention(labels='mixed')
    with pytest.raises(TypeError, match='labels strategy'): ProxyAttention(labels=lambda pixels: (1,0))
    learn = digits_learner(few, seed=0)
    learn.add_cb(ProxyAttention(**usual, labels=lambda mask: 3))
    with pytest.raises(ValueError, match='it should be two weights from 0 to 1'), learn.no_bar(), learn.no_logging(): learn.fit(2, 1e-3)
    with pytest.raises(TypeError, match='cannot return per-sample losses'):
        fitted(few, loss_func=lambda pred,y: F.cross_entropy(pred, y), labels='mix')

def test_your_own_weights(few):
    half = lambda mask: (.5,.5)
    rows = fitted(few, labels=half).proxy_attention.served
    assert (rows.label_weight==.5).all() and (rows.donor_weight==.5).all()

def test_weights_by_heat():
    heat,mask = torch.zeros(4,4),torch.zeros(8,8)
    heat[0,0],mask[:2,:2] = 1.,1.
    assert by_heat(mask, heat, mask, heat)==(0.,1.) and by_heat(mask, heat.flip(0), mask, heat.flip(0))==(1.,0.)
    assert by_heat(mask, torch.zeros(4,4), mask, None)==(1.,4/64) and by_area(mask)==(1-4/64,4/64)
    assert set(labelings)=={'own','mix','mix_area','ignore'}

def test_a_donor_without_heat_counts_by_its_area():
    store = HeatmapStore([0], torch.rand(1,4,4))
    img,other = (PILImage.create(np.full((32,32,3), o, np.uint8)) for o in (10,200))
    area,weights = Proxies(store, Masker('area', 'swap', area=.25), labels='mix').make(img, 0, lambda: (1,other))[1::2]
    assert weights[1]==pytest.approx(area, abs=.01)

def test_mixed_loss_without_a_mixture_is_the_plain_one():
    pred,y = torch.randn(5,3),torch.tensor([0,1,2,0,1])
    for plain in (CrossEntropyLossFlat(weight=torch.rand(3)), F.cross_entropy): assert MixedLoss(plain)(pred, y)==plain(pred, y)
    with NoneReduce(MixedLoss(CrossEntropyLossFlat())) as f: assert f(pred, y).shape==(5,)

def test_what_is_shown_is_not_of_one_class(few):
    learn = fitted(few)
    pa,targs = learn.proxy_attention,learn.proxy_attention.interp.targs
    record,losses = pa.fit_state.record,torch.arange(len(targs)).float()+100*(targs==3)
    idxs = record.largest(losses, pa.store, 8, targs)
    assert len({int(targs[i]) for i in idxs})==8 and idxs[0]==record.largest(losses, pa.store, 1)[0]
    assert {int(targs[i]) for i in record.largest(losses, pa.store, 5)}=={3}
    every = record.largest(losses, pa.store, 1000, targs)
    assert sorted(every)==sorted(record.largest(losses, pa.store, 1000)) and len(every)==len(set(every))

def test_a_rule_that_draws_does_so_for_a_place_that_asks_for_heat():
    "Such a mask is not kept, and it is another one with another seed"
    def fill(other): return other
    fill.where = lambda own, theirs, heat: own|theirs&(heat>=0)
    store = HeatmapStore([0,1], torch.rand(2,4,4))
    img,other = (PILImage.create(np.full((32,32,3), o, np.uint8)) for o in (10,200))
    proxies = Proxies(store, Masker('box', fill))
    made = [proxies.make(img, 0, lambda: (1,other), seed=s)[1] for s in (0,0,1,2,3)]
    assert made[0]==made[1] and len(set(made))>2

@pytest.mark.parametrize('block,label', [(MultiCategoryBlock(encoded=True, vocab=['a','b']), [1.,0.]), (RegressionBlock, 50.)])
def test_a_proxy_of_two_equal_labels_keeps_that_label(few, block, label):
    "Weights by heat need not add up to 1: added up as they are, two images of age 50 had up to 100"
    block = block if isinstance(block, TransformBlock) else block()
    data = DataBlock((ImageBlock,block), get_items=get_image_files, get_y=lambda o: label, splitter=RandomSplitter(seed=0))
    dls = data.dataloaders(few, bs=16)
    watch,n = Watch(),2 if isinstance(label, list) else 1
    learn = Learner(dls, digits_net(n_out=n), lr=1e-3, cbs=[watch, ProxyAttention.snapmix(every=1, p=1.)])
    with learn.no_bar(), learn.no_logging(): learn.fit(3)
    assert learn.proxy_attention.served.label_weight.lt(1).any()
    for *_,y in watch.got: assert torch.allclose(y, torch.tensor(label).expand_as(y), atol=1e-4)

@pytest.mark.parametrize('weight', [torch.full((4,), 5.), torch.tensor([1.,1,1,20])])
@pytest.mark.parametrize('plain', [CrossEntropyLossFlat, nn.CrossEntropyLoss])
def test_with_class_weights_a_mixed_row_does_not_change_the_scale(plain, weight):
    torch.manual_seed(0)
    pred,y = torch.randn(8,4),torch.tensor([0,1,2,3,0,1,2,3])
    rows = torch.stack([y, y.flip(0), torch.full_like(y, 10**6), torch.zeros_like(y)], 1)
    loss = plain(weight=weight)
    assert torch.isclose(MixedLoss(loss)(pred, rows), loss(pred, y))
    rows[0,2:] = torch.tensor([10**6-1000, 1000])
    assert torch.isclose(MixedLoss(loss)(pred, rows), loss(pred, y), rtol=.01)

def test_a_soft_edge_counts_for_both_labels():
    store = HeatmapStore(torch.arange(2), torch.ones(2,8,8))
    p = Proxies(store, Masker('centre', 'swap', area=.3, edge=.2), p=1., labels='mix', size=(64,64))
    p.draw(0)
    _,_,_,(own,theirs) = p.make(torch.rand(3,64,64), 0, lambda: (1, torch.rand(3,64,64)))
    assert own+theirs==pytest.approx(1, abs=.01) and own>.75

def test_heat_below_zero_has_shares_from_0_to_1():
    torch.manual_seed(0)
    mask = torch.zeros(16,16, dtype=torch.bool)
    mask[:8] = True
    for heat,other in ((torch.randn(8,8), torch.randn(8,8)), (torch.full((8,8), -2.), -torch.rand(8,8))):
        assert all(0<=o<=1 for o in by_heat(mask, heat, mask, other))
