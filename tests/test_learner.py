"Everything a practitioner does with a `Learner`, with the callback attached. The failure to fear is a hang, hence the time limit"
import pickle
import pytest, torch
from fastai.vision.all import *
from fastai.callback.all import *
from proxy_attention.all import *
from proxy_attention.attribution.heatmap import HeatmapStore
from proxy_attention.masking.fills import fills
from proxy_attention.masking.rules import rules
from proxy_attention.proxy.losses import losses_of
from proxy_attention.proxy.peers import dac

pytestmark = [pytest.mark.limit(40), pytest.mark.filterwarnings('ignore::proxy_attention.core.ProxyWarning')]

@pytest.fixture
def learn(few): return digits_learner(few, cbs=ProxyAttention(start=1))

def plain(learn):
    return ('create_item' not in learn.dls.train.__dict__ and '_do_epoch_train' not in learn.__dict__
        and learn.dls.train.n==len(learn.dls.train_ds))

def test_validate_predict_and_show(learn, quiet):
    quiet(learn, 'fit_one_cycle', 3, 3e-3)
    served,log = list(learn.proxy_attention.store), len(learn.proxy_attention.log)
    with learn.no_bar():
        learn.validate()
        learn.predict(learn.dls.valid_ds.items[0])
        learn.get_preds(ds_idx=0)
        Interpretation.from_learner(learn)
        learn.show_results(max_n=2)
    assert list(learn.proxy_attention.store)==served and len(learn.proxy_attention.log)==log
    assert plain(learn)

def test_validate_before_any_fit(learn):
    with learn.no_bar(): learn.validate()
    assert len(learn.proxy_attention.log)==0

def test_lr_find_makes_no_step(learn, weights, same):
    before = weights(learn)
    with learn.no_bar(): learn.lr_find(num_it=20, show_plot=False)
    assert same(before, weights(learn)) and len(learn.proxy_attention.log)==0 and plain(learn)

def test_interpretation_is_real(learn, quiet):
    quiet(learn, 'fit_one_cycle', 2, 3e-3)
    interp = learn.proxy_attention.interp
    assert isinstance(interp, ClassificationInterpretation)
    losses,idxs,items = interp.top_losses(5, items=True)
    assert items==[learn.dls.train_ds.items[i] for i in idxs]
    with learn.no_bar():
        interp.plot_top_losses(4)
        assert interp.confusion_matrix().sum()==len(learn.dls.train_ds)

def test_losses_are_those_of_a_plain_loop(learn, quiet):
    quiet(learn, 'fit_one_cycle', 1, 3e-3)
    interp = interpret_train(learn)
    learn.model.eval()
    with torch.no_grad():
        for i in (0, 17, 50):
            x,y = learn.dls.train_ds[i]
            loss = F.cross_entropy(learn.model((image2tensor(x)/255.)[None]), torch.tensor([int(y)]))
            assert torch.isclose(loss, interp.losses[i].as_subclass(Tensor), atol=1e-5)
            assert interp.targs[i]==y
    assert len(learn.recorder.values)==1 and len(learn.recorder.losses)==4

def test_fine_tune(few, quiet):
    set_seed(0)
    dls = ImageDataLoaders.from_folder(few, train='train', valid='valid', bs=32, num_workers=0)
    learn = vision_learner(dls, 'resnet10t', pretrained=False, metrics=accuracy, cbs=ProxyAttention(steps=[1,'p',1]))
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(2, freeze_epochs=1)
    pa = learn.proxy_attention
    assert pa.history.fit.tolist()==[2] and pa.history.epoch.tolist()==[0] and pa.history.made.sum()>0

def test_frozen_body_can_be_explained(few, quiet):
    set_seed(0)
    dls = ImageDataLoaders.from_folder(few, train='train', valid='valid', bs=32, num_workers=0)
    learn = vision_learner(dls, resnet18, pretrained=False, metrics=accuracy, cbs=ProxyAttention(start=1), train_bn=False)
    learn.freeze()
    quiet(learn, 'fit_one_cycle', 2)
    assert learn.proxy_attention.history.made.sum()>0

def test_second_fit_starts_afresh(path, quiet):
    learn = digits_learner(path, cbs=ProxyAttention(start=1))
    quiet(learn, 'fit_one_cycle', 3, 3e-3)
    n = len(learn.proxy_attention.log)
    quiet(learn, 'fit_one_cycle', 2, 3e-3)
    pa = learn.proxy_attention
    assert pa.log.fit.unique().tolist()==[1,2] and len(pa.log)>n and plain(learn)

def test_export_and_load(learn, quiet, tmp_path):
    quiet(learn, 'fit_one_cycle', 3, 3e-3)
    bare = tmp_path/'bare.pkl'
    learn.export(tmp_path/'full.pkl')
    with learn.removed_cbs(learn.proxy_attention): learn.export(bare)
    assert (tmp_path/'full.pkl').stat().st_size < bare.stat().st_size+2000
    again = load_learner(tmp_path/'full.pkl')
    f = learn.dls.valid_ds.items[0]
    with learn.no_bar(), again.no_bar(): assert torch.equal(again.predict(f)[2], learn.predict(f)[2])
    assert len(again.proxy_attention.store)==0 and again.proxy_attention.interp is None
    assert not hasattr(again.dls.train, 'create_item') or 'create_item' not in again.dls.train.__dict__

def test_exported_with_own_function_says_what_was_lost(few, quiet, tmp_path):
    learn = quiet(digits_learner(few, cbs=ProxyAttention(rule=lambda heat, cut=.5: heat>cut, cut=.7, start=1)), 'fit', 2)
    dls = learn.dls
    learn.export(tmp_path/'m.pkl')
    again = load_learner(tmp_path/'m.pkl')
    with again.no_bar(): again.predict(dls.valid_ds.items[0])
    again.dls = dls
    with pytest.raises(ValueError, match=r'its rule \(a suspect, or your own function\) could not be'): quiet(again, 'fit', 2)

class Interrupt(Callback):
    "Ctrl-C in the middle of an epoch"
    def __init__(self, epoch, at=3, event='after_batch'): self.stop_epoch,self.at,self.ev = epoch,at,event
    def after_batch(self):
        if self.training and self.learn.epoch==self.stop_epoch and self.learn.iter==self.at: raise KeyboardInterrupt

def test_ctrl_c_in_a_served_epoch_then_fit_again(learn, quiet, few, weights, same):
    with pytest.raises(KeyboardInterrupt): quiet(learn, 'fit_one_cycle', 3, 3e-3, cbs=Interrupt(2))
    assert len(learn.proxy_attention.store) and plain(learn)
    assert torch.equal(learn.dls.train.create_item(0)[1], learn.dls.train_ds[0][1])
    quiet(learn, 'fit_one_cycle', 3, 3e-3)
    assert plain(learn) and learn.proxy_attention.history.fit.tolist()==[1,1,2,2]

class StopBeforeTheEpoch(Callback):
    "Something stops the fit between our preparations and the epoch"
    order = ProxyAttention.order+5
    def before_epoch(self):
        if self.learn.epoch==2: raise KeyboardInterrupt

def test_stopped_between_preparation_and_epoch(few, quiet, tmp_path):
    learn = digits_learner(few, cbs=ProxyAttention(start=1, every=None))
    with pytest.raises(KeyboardInterrupt): quiet(learn, 'fit', 4, cbs=StopBeforeTheEpoch())
    quiet(learn, 'fit', 1, 1e-3)
    assert plain(learn)
    learn.export(tmp_path/'m.pkl')

def test_fastai_still_has_what_we_wrap(): assert callable(Learner._do_epoch_train)

def test_two_callbacks_are_refused(learn, quiet):
    learn.add_cb(ProxyAttention())
    with pytest.raises(ValueError, match='more than one ProxyAttention'): quiet(learn, 'fit', 2)

def test_given_to_fit_it_can_be_looked_at_afterwards(few, quiet):
    pa = ProxyAttention(start=1)
    quiet(digits_learner(few), 'fit', 2, cbs=pa)
    assert len(pa.log) and pa.show(3).shape==(3,3)

@pytest.mark.parametrize('where', ['losses','heat'])
def test_ctrl_c_in_the_proxy_step(few, quiet, where):
    calls = []
    def heat(xb, yb):
        calls.append(1)
        if where=='heat' and len(calls)==3: raise KeyboardInterrupt
        return torch.rand(len(xb), 4, 4)
    def select(losses):
        if where=='losses' and not calls[1:]:
            calls.append(1)
            raise KeyboardInterrupt
        return range(64)
    learn = digits_learner(few, cbs=ProxyAttention(select=select, attribution=heat, start=1))
    with pytest.raises(KeyboardInterrupt): quiet(learn, 'fit', 3)
    assert plain(learn) and not learn.lock.locked()
    quiet(learn, 'fit', 2)
    assert learn.proxy_attention.history.made.sum()>0

def test_error_in_a_strategy_without_words_is_told(few, quiet):
    def bad(losses): raise RuntimeError
    with pytest.raises(RuntimeError, match='RuntimeError'): quiet(digits_learner(few, cbs=ProxyAttention(select=bad, start=1)), 'fit', 2)

@pytest.mark.parametrize('cbs', [
    MixUp,
    lambda: [EarlyStoppingCallback(patience=0, comp=np.less, min_delta=9.), SaveModelCallback(), CSVLogger(), TerminateOnNaNCallback()],
    lambda: MixedPrecision(),
    lambda: [GradientClip(), ShowGraphCallback()],
    lambda: ChannelsLast()], ids=['mixup','trackers','amp','graph','channels_last'])
def test_with_other_callbacks(few, quiet, cbs, tmp_path):
    cbs = cbs() if isinstance(cbs(), list) else [cbs()]
    learn = digits_learner(few, cbs=[ProxyAttention(start=1), *cbs])
    learn.path = tmp_path
    stopped = any(isinstance(o, EarlyStoppingCallback) for o in cbs)
    with learn.no_logging(): learn.fit_one_cycle(3, 3e-3)
    assert plain(learn) and (stopped or len(learn.proxy_attention.history)==2)

@pytest.mark.parametrize('workers,persistent', [(1,False),(2,True)])
@pytest.mark.parametrize('mode', ['replace','augment'])
def test_workers_serve_proxies(few, workers, persistent, mode):
    set_seed(0)
    dls = ImageDataLoaders.from_folder(few, train='train', valid='valid', bs=8, num_workers=workers, persistent_workers=persistent)
    def white(img): return torch.full_like(img, 255.)
    class Count(Callback):
        run_valid = False
        def before_fit(self): self.n,self.black = {},{}
        def before_batch(self):
            x,e = self.learn.xb[0], self.learn.epoch
            self.n[e] = self.n.get(e, 0)+len(x)
            self.black[e] = self.black.get(e, 0)+int((x.amin((1,2,3))==1).sum())
    learn = Learner(dls, digits_net(), cbs=[
        Count(),
        ProxyAttention(select='random', share=40, rule=lambda heat: torch.ones_like(heat, dtype=torch.bool), max_area=1, fill=white,
            start=1, every=None, p=1., mode=mode)])
    with learn.no_bar(), learn.no_logging(): learn.fit(3)
    c,made = learn.count, int(learn.proxy_attention.history.made.sum())
    n = len(learn.dls.train_ds)//8*8
    assert c.black[0]==0 and c.n[0]==n and plain(learn)
    if mode=='augment': assert c.n[1]==(len(learn.dls.train_ds)+made)//8*8
    for e in (1,2): assert abs(c.black[e]-made)<=7

def test_weighted_loader_keeps_its_weights(few, quiet):
    block = DataBlock((ImageBlock,CategoryBlock), get_items=partial(get_image_files, folders=['train','valid']),
        splitter=GrandparentSplitter(), get_y=parent_label)
    ds = block.datasets(few)
    dls = ds.weighted_dataloaders(np.arange(1, len(ds.train)+1), bs=32, num_workers=0, after_item=ToTensor, after_batch=IntToFloatTensor)
    learn = Learner(dls, digits_net(), cbs=ProxyAttention(start=1))
    before = dls.train.wgts.copy()
    quiet(learn, 'fit', 3)
    assert (dls.train.wgts==before).all() and plain(learn)

def test_data_frame_items(few, quiet):
    files = get_image_files(few/'train')
    df = pd.DataFrame(dict(x=[0]*len(files), name=[str(f.relative_to(few)) for f in files], label=[f.parent.name for f in files]))
    dls = ImageDataLoaders.from_df(df, few, fn_col='name', label_col='label', bs=32, num_workers=0, seed=1)
    learn = Learner(dls, digits_net(), cbs=ProxyAttention(start=1))
    quiet(learn, 'fit', 2)
    assert all(Path(f).exists() for f in learn.proxy_attention.log.file)
    learn.proxy_attention.show(3)

@pytest.mark.parametrize('kw,words', [
    (dict(fill=lambda img: 0), 'returned something of type int'),
    (dict(fill=lambda img: img[:,:2]), 'the whole image'),
    (dict(rule=lambda heat: heat), 'True and False'),
    (dict(select=lambda losses: None), 'returned NoneType'),
    (dict(select=lambda losses: losses), 'returned fractions'),
    (dict(steps=lambda: True), 'function of the epoch'),
    (dict(attribution=lambda xb,yb: None), 'returned a NoneType'),
    (dict(attribution=lambda xb,yb: xb), 'it should be (batch, height, width)')])
def test_own_strategies_are_tried(few, quiet, kw, words):
    with pytest.raises((TypeError,ValueError), match=re.escape(words)):
        quiet(digits_learner(few, cbs=ProxyAttention(**(dict(start=1) if 'steps' not in kw else {}), **kw)), 'fit', 2)

def test_numpy_numbers_are_numbers(few, quiet):
    pa = ProxyAttention(steps=[np.int64(1),'p',np.int64(1)], share=np.int64(5), target=np.int64(3), p=np.float32(.5))
    assert quiet(digits_learner(few, cbs=pa), 'fit', 2).proxy_attention.history.made.tolist()==[5]

def test_a_boolean_selection_is_a_mask(few, quiet):
    learn = quiet(digits_learner(few, cbs=ProxyAttention(select=lambda losses: losses>losses.median(), start=1)), 'fit', 2)
    assert learn.proxy_attention.history.chosen.tolist()==[len(learn.dls.train_ds)//2]

@pytest.mark.parametrize('loss', [lambda p,y: F.cross_entropy(p, y), nn.Sequential()])
def test_loss_without_reduction_is_refused(few, quiet, loss):
    with pytest.raises(TypeError, match='cannot return per-sample losses'):
        quiet(digits_learner(few, loss_func=loss, cbs=ProxyAttention(start=1)), 'fit', 2)

@pytest.mark.parametrize('block,get_y', [
    (MultiCategoryBlock, lambda f: [f.parent.name]),
    (ImageBlock, noop)])
def test_other_tasks_are_refused(few, quiet, block, get_y):
    dls = DataBlock((ImageBlock,block), get_items=get_image_files, get_y=get_y).dataloaders(few/'train', bs=16, num_workers=0)
    with pytest.raises(TypeError, match='one class per image'):
        quiet(Learner(dls, digits_net(), loss_func=MSELossFlat(), cbs=ProxyAttention(start=1)), 'fit', 2)

def test_more_outputs_than_classes(few, quiet):
    dls = DataBlock((ImageBlock,CategoryBlock), get_items=get_image_files,
        get_y=lambda f: str(int(f.parent.name)%3)).dataloaders(few/'train', bs=16, num_workers=0)
    quiet(Learner(dls, digits_net(), cbs=ProxyAttention(start=1)), 'fit', 2)

def test_a_deep_copy_carries_everything(few, quiet):
    learn = quiet(digits_learner(few, cbs=ProxyAttention(select=lambda losses: range(9), start=1)), 'fit', 2)
    again = deepcopy(learn)
    assert list(again.proxy_attention.store)==list(learn.proxy_attention.store) and again.proxy_attention.learn is again
    quiet(again, 'fit', 2)
    assert again.proxy_attention.log.fit.tolist()==[2]*9 and learn.proxy_attention.log.fit.tolist()==[1]*9
    assert again.proxy_attention.history.fit.tolist()==[1,2] and learn.proxy_attention.history.fit.tolist()==[1]

def test_starting_after_the_step_is_said(few, quiet):
    with pytest.warns(ProxyWarning, match='that step is left out'):
        quiet(digits_learner(few, cbs=ProxyAttention(steps=[1,'p',2])), 'fit', 3, 1e-3, start_epoch=1)

def test_grey_images_and_oblong_inputs(few, quiet):
    dls = DataBlock((ImageBlock(PILImageBW),CategoryBlock), get_items=get_image_files, get_y=parent_label,
        item_tfms=Resize((32,48))).dataloaders(few/'train', bs=16, num_workers=0)
    net = digits_net()
    net[0][0] = nn.Conv2d(1, 16, 3, padding=1, bias=False)
    learn = quiet(Learner(dls, net, cbs=ProxyAttention(start=1)), 'fit', 2)
    assert learn.proxy_attention.store.grids.shape[1:]==(8,12)
    learn.proxy_attention.show(2)

@pytest.mark.parametrize('clear', [True,False])
def test_kept_on_disk(path, quiet, tmp_path, clear):
    pa = ProxyAttention(start=1, clear=clear, share=20, select='random', folder=tmp_path/'run', save_images=True)
    learn = quiet(digits_learner(path, cbs=pa), 'fit', 3)
    store = HeatmapStore.load(tmp_path/'run'/'heat.npz')
    assert list(store)==list(pa.store) and np.array_equal(store.grids, pa.store.grids)
    manifest = pd.read_csv(tmp_path/'run'/'manifest.csv')
    on_disk = {o.relative_to(tmp_path/'run').as_posix() for o in (tmp_path/'run'/'proxies').iterdir()}
    assert on_disk==set(manifest.proxy)
    served = pd.read_csv(tmp_path/'run'/'served.csv')
    last = served[served.epoch==2] if clear else served # the images of a step go when the next one forgets its proxies
    assert sorted(manifest['item'])==sorted(last['item'].unique()) and set(manifest['item'])<=set(pa.store) and (len(pa.store)<=20)==clear
    assert served.groupby('epoch').size().tolist()==pa.history.served.tolist()
    assert len(pd.read_csv(tmp_path/'run'/'proxy_log.csv'))==(pa.history.chosen.sum() if clear else len(pa.store))
    for _,row in manifest.iterrows():
        a,b = (np.asarray(Image.open(o)) for o in (tmp_path/'run'/row.proxy, row.source))
        assert a.shape==b.shape and 0<(a!=b).any(-1).mean()<=row.area+.02

def test_an_unknown_target_is_refused_before_the_first_batch(few, quiet):
    learn = digits_learner(few, cbs=ProxyAttention(start=1, target='margn')) # the name of a label would do, so the learner has to be known
    before = {k:v.clone() for k,v in learn.model.state_dict().items()}
    with pytest.raises(ValueError, match="did you mean 'margin'"): quiet(learn, 'fit', 2)
    assert all(torch.equal(v, before[k]) for k,v in learn.model.state_dict().items())

def test_folder_that_cannot_be_written(few, quiet):
    with pytest.raises(OSError, match='cannot be written'):
        quiet(digits_learner(few, cbs=ProxyAttention(start=1, folder='/proc/nothing')), 'fit', 2)

def test_steps_longer_than_the_fit(few, quiet):
    with pytest.raises(ValueError, match='need 14 epochs, this fit has 3'):
        quiet(digits_learner(few, cbs=ProxyAttention(steps=[5,'p',9])), 'fit', 3)

def test_to_proxy(few): assert digits_learner(few).to_proxy(area=.2).proxy_attention.masker.kwargs==dict(area=.2)

@pytest.mark.parametrize('kw,words', [
    (dict(select='toploss'), "did you mean 'top_losses'"),
    (dict(share=1.2), 'share=1.2'), (dict(share=0.), 'share=0.0'), (dict(area=0.), 'area=0.0'), (dict(p=2), 'p=2'),
    (dict(mode='replaced'), "did you mean 'replace'"), (dict(rule='aera'), "did you mean 'area'"),
    (dict(max_area=0), 'max_area=0'),
    (dict(attribution='LayerCam'), "did you mean 'LayerCAM'"),
    (dict(aera=.1), "did you mean 'area'"),
    (dict(start=1.5), 'start=1.5'),
    (dict(save_images=True), 'give `folder` too'),
    (dict(steps='p,5'), 'begin with a proxy step'),
    (dict(select=[5,'p',9]), 'No selection is called'), (dict(steps=3), 'steps=3 should be a list'),
    (dict(p=None), 'p=None'), (dict(max_area='.4'), "max_area='.4'"), (dict(grid=-1), 'grid=-1'),
    (dict(rule='absolute', threshold='x'), "threshold='x'"),
    (dict(target=True), 'target=True'), (dict(target=torch.tensor([1,2])), 'is a target for one batch only'),
    (dict(folder=''), "folder=''"),
    (dict(start=.8, finish=.2), 'comes after finish'), (dict(steps=[1,'p',1], every=2), 'Give either `steps`'),
    (dict(attribution=GradCAM(digits_net())), 'already belongs to a model'),
    (dict(select=lambda loss: [1]), "needs `loss`, did you mean 'losses'?"),
    (dict(fill=lambda pic: pic), 'needs `pic`'), (dict(fill=torch.zeros_like), 'wrap it in a function'),
    (dict(attribution='ShapleyValues'), 'No attribution is called')])
def test_bad_arguments_get_a_sentence(kw, words):
    with pytest.raises((ValueError,TypeError), match=re.escape(words)): ProxyAttention(**kw)

@pytest.mark.parametrize('recipe', ['thesis','masktune','late','shortcut'])
def test_recipes_run_and_can_be_overridden(path, quiet, recipe):
    learn = quiet(digits_learner(path, cbs=getattr(ProxyAttention, recipe)(fill='mean')), 'fit_one_cycle', 4, 3e-3)
    assert learn.proxy_attention.history.made.sum()>0

@pytest.mark.parametrize('fill', list(fills))
def test_the_thesis_values(few, quiet, fill):
    "Every new value of the thesis, at its threshold, on captum's own scale, with its schedule"
    pa = ProxyAttention.thesis(steps=[1,'p',1,'p',1], fill=fill, select='all')
    learn = quiet(digits_learner(few, cbs=pa), 'fit', 3, 1e-2)
    assert pa.history.epoch.tolist()==[0,1] and (pa.log.area>0).any()
    last = pa.log[pa.log.epoch==1]
    assert pa.store.grids.shape[1:]==(32,32) # neither shrunk nor scaled: the threshold meets captum's own numbers
    share = (pa.store.grids.astype(np.float32)>0.008).mean((1,2))
    assert np.allclose(share, last.set_index('item').area[list(pa.store)], atol=1e-6)
    i = list(pa.store)[0]
    a,b = np.asarray(learn.dls.train_ds[i][0]).astype(float), np.asarray(pa.proxy_images([i])[0]).astype(float)
    hot = pa.store[i].numpy()>0.008
    if fill=='swap_both': # as far as the donor was looked at, too
        donor = pa.fit_state.record.serving_of(i)['donor']
        hot |= donor in pa.store and pa.store[donor].numpy()>0.008
    assert (a==b)[~hot].all()
    value = dict(zero=0, mean=a.mean(), max=a.max(), min=a.min(), halfmax=a.max()/2).get(fill)
    if value is not None: assert np.abs(b[hot]-value).max()<=.5
    if fill=='blend': assert np.abs(b[hot] - ((1-.8*pa.store[i].numpy()[...,None])*a)[hot]).max()<=.5+1e-3

def test_the_exact_pass_reads_each_item_once(path, quiet):
    "Not all items before each one"
    learn = digits_learner(path)
    class Counting(L):
        asked = 0
        def __getitem__(self, i):
            Counting.asked += len(i) if is_iter(i) else 1
            return super().__getitem__(i)
    learn.dls.train_ds.tls[0].items = learn.dls.train_ds.tls[1].items = Counting(learn.dls.train_ds.items)
    interpret_train(learn)
    n = len(learn.dls.train_ds)
    assert Counting.asked<=6*n, f'{Counting.asked} look-ups for {n} items'

def test_a_loss_keeps_its_mean_after_an_error():
    "A loss function whose `reduction` we change for a moment has its own again, also where it refuses a batch"
    loss = nn.CrossEntropyLoss()
    with pytest.raises(IndexError): losses_of(loss, torch.zeros(2,3), torch.tensor([0,7]))
    assert loss.reduction=='mean'

class Away(nn.Sequential):
    "A network that refuses batches until it is moved to the device of its learner"
    here = False
    def to(self, *args, **kwargs):
        self.here = True
        return super().to(*args, **kwargs)
    def forward(self, x):
        if not self.here: raise RuntimeError('Input type (torch.cuda.FloatTensor) and weight type (torch.FloatTensor) should be the same')
        return super().forward(x)

some = dict(
    probe=probe, fit_head=lambda learn: learn.fit_head(None, passes=1), fit_proxy=lambda learn: learn.fit_proxy(2, 1e-3),
    swapped_accuracy=lambda learn: swapped_accuracy(learn, 'rest', n=8), heat_on=lambda learn: heat_on(learn, learn.dls.valid_ds.items[:2]),
    scores=lambda learn: explanation_scores(learn, learn.dls.valid_ds.items[:2]),
    recipe=lambda learn: learn.fit(2, 1e-3, cbs=ProxyAttention.shortcut()))

@pytest.mark.parametrize('what', some)
def test_a_network_is_moved_to_the_device_of_its_batches(few, quiet, what):
    "`Away` stands for a GPU: every way in works on a learner that was never fitted"
    dls = ImageDataLoaders.from_folder(few, train='train', valid='valid', bs=16, num_workers=0)
    learn = Learner(dls, Away(*digits_net()), metrics=accuracy)
    with learn.no_bar(), learn.no_logging(): some[what](learn)
    assert learn.model.here

class Both(nn.Module):
    "Two images as inputs"
    def __init__(self):
        super().__init__()
        self.net = digits_net()
    def forward(self, a, b): return self.net(a)+self.net(b)

ways = dict(some, show_where=lambda learn: show_where(learn, learn.dls.valid_ds.items[:2]),
            randomised=lambda learn: randomised(learn, learn.dls.valid_ds.items[:2]),
            metric=lambda learn: SwappedAccuracy('rest').look(learn), dac=dac, interp=ProxyInterpretation.from_learner)

@pytest.mark.parametrize('what', ways)
def test_several_inputs_are_refused_in_a_sentence(few, quiet, what):
    files = get_image_files(few/'train').sorted()[:40]
    dls = DataBlock((ImageBlock,ImageBlock,CategoryBlock), n_inp=2, getters=[noop,noop,parent_label],
                    splitter=RandomSplitter(.4, seed=1)).dataloaders(files, bs=8, num_workers=0)
    learn = Learner(dls, Both(), loss_func=CrossEntropyLossFlat(), metrics=accuracy)
    with learn.no_bar(), learn.no_logging(), pytest.raises(TypeError, match='The model (takes|has) 2 inputs'): ways[what](learn)

class Asks(Callback):
    "Asks the learner something in the middle of a fit, without `inner=True`"
    def __init__(self, how, event): self.how,self.event = how,event
    def __call__(self, name):
        if name==self.event and self.training is not None and not self.learn.lock.locked(): getattr(self.learn, self.how)()

@pytest.mark.parametrize('how,event', [('get_preds','after_train'), ('validate','after_train'), ('get_preds','after_epoch')])
def test_predictions_in_the_middle_of_a_fit_do_not_end_it(few, quiet, how, event):
    learn = digits_learner(few, seed=0, cbs=[ProxyAttention(start=1, select='all', p=1.), Asks(how, event)])
    quiet(learn, 'fit', 4, 1e-3)
    pa = learn.proxy_attention
    assert pa.history.epoch.tolist()==[0,1,2] and pa.history.fit.eq(1).all()
    assert [(o['fit'],o['epoch']) for o in pa.fit_state.record.epochs]==[(1,1),(1,2),(1,3)] and plain(learn)

def test_a_fit_that_is_refused_has_not_begun(few, quiet, tmp_path):
    "A second try is refused as the first was, and the proxies of another run stay as they are"
    quiet(digits_learner(few, seed=0, cbs=ProxyAttention(start=1, p=1., folder=tmp_path/'p')), 'fit', 2, 1e-3)
    was = {o.name:o.read_bytes() for o in (tmp_path/'p').iterdir()}
    learn = digits_learner(few, seed=1, cbs=ProxyAttention(start=1, p=1., folder=tmp_path/'p'))
    for _ in range(2):
        with pytest.raises(FileExistsError, match='contains the proxies of another run'): quiet(learn, 'fit', 2, 1e-3)
    assert {o.name:o.read_bytes() for o in (tmp_path/'p').iterdir()}==was

def test_a_refused_fit_does_not_forget_the_schedule_over_several_fits(few, quiet):
    learn = digits_learner(few, seed=0, cbs=ProxyAttention(steps=[1,'p',5], across=6, select='all', p=1.))
    quiet(learn, 'fit', 1, 1e-3)
    with pytest.raises(ValueError, match='earlier fits had 1 epochs and this fit has 7: give their sum'): quiet(learn, 'fit', 7, 1e-3)
    quiet(learn, 'fit', 5, 1e-3)
    pa = learn.proxy_attention
    assert len(pa.history)==1 and [(o['fit'],o['epoch']) for o in pa.fit_state.record.epochs]==[(2,k) for k in range(5)]

def test_a_fit_that_stops_early_counts_the_epochs_it_had(few, quiet):
    class Stop(Callback):
        def after_epoch(self):
            if self.learn.stops: raise CancelFitException
    learn = digits_learner(few, seed=0, cbs=[Stop(), ProxyAttention(steps=[2,'p',6], across=8)])
    learn.stops = True
    quiet(learn, 'fit', 4, 1e-3) # one epoch
    learn.stops = False
    quiet(learn, 'fit', 4, 1e-3)
    assert learn.proxy_attention.history[['fit','epoch']].values.tolist()==[[2,0]]

def test_a_plateau_over_two_fits_is_that_of_one_fit(few, quiet):
    "The values of the first fit count in the second"
    def steps(*fits):
        plateau = Plateau(monitor='train_loss', min_delta=100., patience=2, steps=1)
        learn = digits_learner(few, seed=0, cbs=ProxyAttention(steps=plateau, across=6))
        for o in fits: quiet(learn, 'fit', o, 1e-3)
        h = learn.proxy_attention.history
        return [e+(3 if f==2 and len(fits)==2 else 0) for f,e in zip(h.fit, h.epoch)]
    assert steps(3,3)==steps(6) and len(steps(6))==1

def test_other_data_in_the_learner_does_not_get_the_heat_of_the_old(few, path, quiet):
    learn = digits_learner(few, seed=0, cbs=ProxyAttention(start=1, select='all', across=4, clear=False, p=1.))
    quiet(learn, 'fit', 2, 1e-3)
    files = learn.proxy_attention.log.file.tolist()
    learn.dls = digits_learner(path, seed=1).dls
    assert learn.proxy_attention.log.file.tolist()==files
    learn.proxy_attention.show(2)
    with pytest.raises(ValueError, match='The training items are others than in the earlier fits'): quiet(learn, 'fit', 2, 1e-3)

def test_no_proxy_images_before_a_step(learn):
    with pytest.raises(ValueError, match='No proxy step has been made yet'): learn.proxy_attention.proxy_images([0])

@pytest.mark.parametrize('recipe,kwargs', [
    ('thesis', dict(rule='area')), ('masktune', dict(rule='area')), ('snapmix', dict(rule='area')),
    ('attentive_cutmix', dict(rule='box')), ('shortcut', dict(rule='rest')), ('late', dict(rule='otsu')),
    ('keep', dict(rule='area', fill='swap')), ('background', dict(fill='zero'))])
def test_settings_of_an_overridden_rule_are_dropped(recipe, kwargs):
    made = getattr(ProxyAttention, recipe)(**kwargs)
    for k,v in kwargs.items(): assert getattr(made.masker, k) is (fills if k=='fill' else rules)[v]

def test_a_recipe_with_a_schedule_of_its_own_says_so():
    with pytest.raises(TypeError, match=r'`probed` has a schedule of its own .* `steps=IfCarried\(start=0.2\)`'):
        ProxyAttention.probed(start=.2)

@pytest.mark.parametrize('kwargs', [dict(pct_start=.25), dict(probe=1), dict(div=10.)])
def test_a_recipe_that_sets_its_rates_takes_no_others(few, kwargs):
    learn = digits_learner(few, cbs=ProxyAttention.masktune())
    with pytest.raises(TypeError, match='masked_at_the_end|sets its own learning rates'): learn.fit_proxy(4, 1e-2, **kwargs)

def test_the_head_is_trained_with_the_same_weight_decay(few, quiet):
    class Decay(Callback):
        seen = []
        def before_train(self): self.seen.append((len(self.opt.hypers)-self.opt.frozen_idx, self.opt.hypers[-1]['wd']))
    learn = vision_learner(digits_learner(few).dls, resnet18, pretrained=False, cbs=[Decay(), ProxyAttention(start=1)])
    quiet(learn, 'fine_tune_proxy', 2, wd=.3)
    assert {wd for _,wd in Decay.seen}=={.3} and Decay.seen[0][0]<Decay.seen[-1][0]
