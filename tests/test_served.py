"""What was really served, and what record, show, manifest and report say of it

Every image tells by its pixels which item it is: red is 1 + its number, green and blue are the place. So from any image that
reaches the model one can read the item, the donor, and every masked pixel, whatever the library has written down.
Where the model looks is a function of the item's number as well, so a mask in the place of another item's is seen, too."""
import json, pickle
from collections import Counter, namedtuple
from types import MethodType
import pytest, torch
from fastai.vision.all import *
from proxy_attention.all import *
from proxy_attention.attribution.heatmap import HeatmapStore
from proxy_attention.proxy.record import last_served, read_proxies, remade
from proxy_attention.proxy.step import Settings, heat_of_items
from proxy_attention.report.folder import RunFolder

pytestmark = pytest.mark.filterwarnings('ignore::proxy_attention.core.ProxyWarning')
N,SIZE = 40,16

def picture(i):
    "(h,w,3) uint8 of item `i`"
    y,x = np.mgrid[:SIZE,:SIZE]*(250//SIZE)
    return np.stack([np.full_like(x, i+1), x, y], -1).astype(np.uint8)

def heat_of_item(i):
    "(4,4): hot in another place for every item"
    h = torch.tensor([1., *(o/64 for o in range(15))]).roll(i).view(4,4) # what half precision holds exactly
    return (h, h.T, h.flip(0))[i//16]

def number_of(img): return int(np.bincount(np.asarray(img)[...,0].ravel()).argmax())-1

def look(xb, yb):
    "The attribution: what is hot is known from the item alone"
    return torch.stack([heat_of_item(number_of((x.permute(1,2,0)*255).round().byte())) for x in xb.as_subclass(Tensor).cpu()])

class Net(nn.Module):
    "Scores that are known by hand from the red of an image"
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.))
    def forward(self, x):
        red = x[:,0].flatten(1).median(1).values*255
        return torch.stack([red*.01, (red*.37).sin(), (red*.11).cos()], 1)*self.scale

def label(i): return i%3

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    d = tmp_path_factory.mktemp('known')
    for part,at in (('train',range(N)),('valid',range(N, N+6))):
        for i in at:
            f = d/part/str(label(i))/f'{i:03}.png'
            f.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture(i)).save(f)
    return d

class Skips(Transform):
    "Some items cannot be had"
    def __init__(self, which): self.which = set(which)
    def encodes(self, x:PILImage):
        if number_of(x) in self.which: raise SkipItemException
        return x

def make_learner(folder, *cbs, workers=0, kind='usual', skip=(), bs=8, drop_last=True, tfms=()):
    "The train items are numbered as they are shown: item `i` is picture `i`"
    set_seed(3)
    files = [folder/'train'/str(label(i))/f'{i:03}.png' for i in range(N)] + sorted((folder/'valid').rglob('*.png'))
    block = DataBlock((ImageBlock,CategoryBlock), get_y=parent_label, splitter=IndexSplitter(range(N, len(files))),
                      item_tfms=[*([Skips(skip)] if skip else []), *tfms])
    kw = dict(bs=bs, num_workers=workers, drop_last=drop_last)
    if kind=='usual': dls = block.dataloaders(files, **kw)
    else:
        ds = block.datasets(files)
        kw |= dict(after_item=[*([Skips(skip)] if skip else []), ToTensor], after_batch=IntToFloatTensor)
        dls = ds.partial_dataloaders(24, **kw) if kind=='partial' else ds.weighted_dataloaders(np.arange(N)+1., **kw)
    return Learner(dls, Net(), loss_func=CrossEntropyLossFlat(), cbs=list(cbs))

def proxy(folder=None, **kw):
    own = dict(attribution=look, losses='exact', select='all', share=None, folder=folder, area=.15, steps=[1,'p',1,'p',1])
    return ProxyAttention(**(own|kw))

Read = namedtuple('Read', 'item donor mask pixels')

def read(img):
    "What an image is: item, donor (-1: none), (h,w) mask, pixels"
    x = np.asarray(img)
    i = number_of(x)
    mask = (x!=picture(i)).any(-1)
    reds = set(x[mask][:,0].tolist())
    assert len(reds)<2, 'pixels of at most one donor'
    return Read(i, max(reds, default=0)-1, mask, x)

class Witness(Callback):
    "Reads what every batch is made of; and, outermost in the training loader, what every item is made of"
    order = 1000
    def __init__(self, file): self.file,self.rows,self.valid,self.has,self.fits = Path(file),[],[],{},1
    def before_train(self):
        dl,file,at = self.dls.train,self.file,(self.fits,self.epoch)
        self.dl,make = dl,dl.create_item
        self.has[at] = set(self.learn.proxy_attention.store)
        def create_item(dl, s):
            item = make(s)
            with open(file, 'a') as f: f.write(json.dumps([*at, np.asarray(item[0]).tolist()])+'\n') # in any worker
            return item
        self.was = {k:dl.__dict__[k] for k in ('create_item',) if k in dl.__dict__}
        dl.create_item = MethodType(create_item, dl)
    def after_train(self):
        self.dl.__dict__.pop('create_item')
        self.dl.__dict__.update(self.was)
    def after_fit(self): self.fits += 1
    def before_batch(self):
        imgs = (self.learn.xb[0].as_subclass(Tensor).permute(0,2,3,1)*255).round().byte().numpy()
        for o,y in zip(imgs, self.learn.yb[0].tolist()):
            got = read(o)
            assert y==label(got.item), 'a label that is not that of its image'
            if self.training: self.rows.append((self.fits, self.epoch, got))
            else: self.valid.append(got.mask.any())
    def proxies(self, *at):
        "Those that were served as proxies, in one epoch or in all"
        return [o for f,e,o in self.rows if o.mask.any() and at in ((),(f,e))]
    def made(self):
        "What the loader made, as a table; items of a last batch that is dropped among them"
        return [(f, e, read(np.array(o, np.uint8))) for f,e,o in map(json.loads, self.file.read_text().splitlines())]

def fit(learn, how='fit', *args, **kwargs):
    with learn.no_bar(), learn.no_logging(): getattr(learn, how)(*(args or (3, 0.)), **kwargs)
    return learn

def seen_as(rows): return sorted((o.item, o.donor, round(o.mask.mean(), 5)) for o in rows)
def told_as(df): return sorted((o.item, o.donor, round(o.area, 5)) for o in df.itertuples())
def pixels(ax):
    x = np.asarray(ax.images[0].get_array())
    return x if x.dtype==np.uint8 else (x*255).round().astype(np.uint8)

def hold(learn, seen, folder=None, images=False):
    "Record, log, history, show, files, manifest and report, held to what was seen"
    pa = learn.proxy_attention
    rec,served = pa.fit_state.record,seen.proxies()
    epochs = {(o['fit'],o['epoch']):o for o in rec.epochs}
    assert served and not any(seen.valid), 'the test sees proxies, and validation never has any'
    # every epoch
    for at in {o[:2] for o in seen.rows}:
        assert len(seen.proxies(*at))==epochs.get(at, dict(served=0))['served']
        made = Counter(seen_as(o for *a,o in seen.made() if tuple(a)==at))
        assert Counter(seen_as(o for *a,o in seen.rows if tuple(a)==at))<=made, 'what reached the model left the loader like this'
    assert pa.history.served.sum()==len(served)
    assert told_as(pa.served)==seen_as(seen.proxies(*list(epochs)[-1]))
    # every proxy: its mask lies where its own heat says, and nobody else's
    for f,e,o in seen.rows:
        if not o.mask.any(): continue
        m = pa.masker
        known = m.where is not None and o.donor in seen.has[f,e]
        assert np.array_equal(o.mask, m.mask_over(heat_of_item(o.item), (SIZE,SIZE), heat_of_item(o.donor) if known else None))
        assert (o.donor>=0)==m.needs_other and o.donor!=o.item
    # every item, since the step that chose it
    log,last,first,began = pa.log.set_index('item'),{},{},{}
    for i,row in log.iterrows():
        mine = [(o,at) for *at,o in seen.rows if o.item==i and o.mask.any() and epochs[tuple(at)]['step']>=rec.items['step'][i]]
        assert row.served==len(mine)
        when = [at for _,at in mine]
        mine = [o for o,_ in mine]
        if mine:
            last[i],first[i],began[i] = mine[-1],mine[0],when[0]
            how = rec.serving_of(i)
            assert [how['fit'],how['epoch']]==when[-1]
        assert (row.donor,row.changed)==((mine[-1].donor, pytest.approx(mine[-1].mask.mean(), abs=1e-5)) if mine else (-1,0))
    # pictures
    shown = [i for i in last if i in pa.store]
    for i,img in zip(shown, pa.proxy_images(shown)): assert np.array_equal(img, last[i].pixels)
    for o in map(pixels, pa.show(4)[-1]): assert np.array_equal(o, last[number_of(o)].pixels)
    for o in map(pixels, ProxyInterpretation.from_learner(learn).show_proxies(4)[2]): assert np.array_equal(o, last[number_of(o)].pixels)
    if folder is None: return
    # files, and the report that reads them
    assert told_as(pd.read_csv(folder/'served.csv'))==seen_as(served)
    assert sorted(pd.read_csv(folder/'proxy_log.csv')['item'].unique())==sorted(log.index)
    assert HeatmapStore.load(folder/'heat.npz').idxs.tolist()==pa.store.idxs.tolist()
    again = read_proxies(folder)
    if again is not None:
        how = last_served(folder, again)
        assert set(how.index)==set(shown)
        for i in shown: assert np.array_equal(remade(again, how.loc[i], i, lambda j: Image.fromarray(picture(j))), last[i].pixels)
    if not images: return
    kept = pd.read_csv(folder/'manifest.csv')
    assert {folder/o for o in kept.proxy}=={*(folder/'proxies').iterdir()} and {*kept['item']}=={*shown}
    pages = RunFolder(folder)._proxy_of(None)
    for o in kept.itertuples():
        was = first[o.item]
        assert (o.donor, Path(o.source).name, str(o.label))==(was.donor, f'{o.item:03}.png', str(label(o.item)))
        assert [o.fit,o.epoch]==began[o.item]
        assert o.area==pytest.approx(was.mask.mean(), abs=1e-5)==pages[o.item][0]
        for img in (Image.open(folder/o.proxy), pages[o.item][1]()): assert np.array_equal(img, was.pixels)

cases = {
    'usual':{}, 'every time':dict(p=1.), 'seldom':dict(p=.2), 'black':dict(fill='zero', p=1.), 'worst':dict(select='top_losses', share=.4),
    'kept':dict(clear=False, select='random', share=12), 'kept, both places':dict(clear=False, select='random', share=12, fill='swap_both'),
    'both places':dict(fill='swap_both', p=1.), 'beside':dict(mode='augment'), 'beside, every time':dict(mode='augment', p=1.),
    'another class':dict(donor='other_class'), 'the same class':dict(donor='same_class', p=1.), 'each class':dict(donor='balanced', p=1.),
    'alike':dict(donor='alike'), 'a donor of my own':dict(donor=lambda i,n: (i+7)%n),
    'watching':dict(losses='running', select='random', share=15)}

@pytest.mark.parametrize('case', cases)
def test_what_is_told_is_what_was_served(folder, tmp_path, case):
    learn = make_learner(folder, proxy(tmp_path/'run', **cases[case]), seen := Witness(tmp_path/'seen'))
    hold(fit(learn), seen, tmp_path/'run')

@pytest.mark.parametrize('mode', ['replace','augment'])
@pytest.mark.parametrize('kind,workers,drop_last', [
    ('usual',2,True), ('usual',0,False), ('weighted',0,True), ('weighted',2,False), ('partial',0,True)])
def test_in_every_loader(folder, tmp_path, kind, workers, drop_last, mode):
    learn = make_learner(folder, proxy(tmp_path/'run', mode=mode), seen := Witness(tmp_path/'seen'), kind=kind, workers=workers,
                         drop_last=drop_last, bs=7)
    hold(fit(learn), seen, tmp_path/'run')

@pytest.mark.parametrize('kind,told', [('weighted',True), ('usual',False)])
def test_equal_classes_instead_of_the_loader_s_weights_are_told(folder, kind, told):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        fit(make_learner(folder, proxy(balance=True), kind=kind))
    assert any('weights of its own' in str(o.message) for o in seen)==told

@pytest.mark.parametrize('clear', [True,False])
@pytest.mark.parametrize('mode,fill', [('replace','swap'), ('augment','swap_both')])
def test_saved_images_are_those_that_were_served_first(folder, tmp_path, mode, fill, clear):
    learn = make_learner(folder, proxy(tmp_path/'run', mode=mode, fill=fill, clear=clear, select='random', share=12, save_images=True),
                         seen := Witness(tmp_path/'seen'))
    hold(fit(learn), seen, tmp_path/'run', images=True)

@pytest.mark.parametrize('losses', ['exact','running'])
def test_across_both_phases_of_fine_tune(folder, tmp_path, losses):
    cb = proxy(tmp_path/'run', across=3, clear=False, select='random', share=12, losses=losses)
    learn = make_learner(folder, cb, seen := Witness(tmp_path/'seen'))
    hold(fit(learn, 'fine_tune', 2, 0.), seen, tmp_path/'run')
    assert [o['fit'] for o in learn.proxy_attention.fit_state.record.epochs]==[2,2]

def test_a_second_fit(folder, tmp_path):
    "It begins with no proxies, and its rows stand below those of the first"
    learn = make_learner(folder, proxy(tmp_path/'run'), seen := Witness(tmp_path/'seen'))
    hold(fit(fit(learn)), seen, tmp_path/'run')
    assert seen.proxies(1,1) and not seen.proxies(2,0) and seen.proxies(2,1)
    assert learn.proxy_attention.history.fit.tolist()==[1,1,2,2]

@pytest.mark.parametrize('training', [True,False])
def test_cut_off_and_gone_on_with(folder, tmp_path, training):
    "What was served of an epoch that was cut off, in training or in validation, and trained again is not told twice"
    class Cut(Callback):
        def after_batch(self):
            if self.training==training and (self.epoch,self.iter)==(2,3 if training else 0): raise KeyboardInterrupt
    def learner(name, *cbs):
        pa = proxy(tmp_path/'run', clear=False, select='random', share=12, save_images=True)
        return make_learner(folder, pa, Checkpoint(tmp_path/'ckpt', best=None, resume=True), *cbs)
    first,then = Witness(tmp_path/'first'),Witness(tmp_path/'then')
    with pytest.raises(KeyboardInterrupt): fit(learner('first', first, Cut()))
    learn = fit(learner('then', then))
    then.rows = [o for o in first.rows if o[1]<2]+then.rows
    then.file.write_text(''.join(l+'\n' for l in first.file.read_text().splitlines() if json.loads(l)[1]<2)+then.file.read_text())
    hold(learn, then, tmp_path/'run', images=True)

def test_interrupted(folder, tmp_path):
    "An epoch that a Ctrl-C ends has served what it has served"
    class Stop(Callback):
        def after_batch(self):
            if self.training and (self.epoch,self.iter)==(1,2): raise KeyboardInterrupt
    learn = make_learner(folder, proxy(p=1.), seen := Witness(tmp_path/'seen'), Stop())
    with pytest.raises(KeyboardInterrupt): fit(learn)
    batches = seen.rows[-24:] # three of eight: the third was gone through, and then stopped before its end
    assert learn.proxy_attention.history.served.tolist()==[len(seen.proxies())-8] and all(o[2].mask.any() for o in batches)

def test_never_served(folder, tmp_path):
    learn = make_learner(folder, proxy(p=0.), seen := Witness(tmp_path/'seen'))
    pa = fit(learn).proxy_attention
    assert len(pa.store)==N and not seen.proxies() and not pa.history.served.any() and not pa.log.served.any()
    with pytest.raises(ValueError, match='No proxy image has been served yet'): pa.show()
    with pytest.raises(ValueError, match='has not been served'): pa.proxy_images([0])

def test_a_mask_is_that_of_its_step(folder, tmp_path):
    "With `clear=False` an item keeps its first mask, and a step's own arguments hold for that step alone"
    areas = [dict(area=.3), True]
    cb = proxy(clear=False, select='random', share=12, p=1., steps=lambda e,n: e<2 and areas[e])
    learn = make_learner(folder, cb, seen := Witness(tmp_path/'seen'))
    rec = fit(learn).proxy_attention.fit_state.record
    assert {rec.items['step'][o.item] for o in seen.proxies()}=={0,1}
    for o in seen.proxies(): assert o.mask.mean()==pytest.approx([.3,.15][rec.items['step'][o.item]], abs=.01)

# An item's number goes with it

def loss_of(i):
    "The loss of an item, from its pixels"
    x = torch.from_numpy(picture(i)).permute(2,0,1)[None]/255
    return F.cross_entropy(Net()(x), torch.tensor([label(i)])).item()

@pytest.mark.parametrize('source', ['exact','running'])
@pytest.mark.parametrize('kind,workers', [('usual',0), ('usual',2), ('weighted',0), ('partial',0)])
@pytest.mark.parametrize('skip', [(), (1,7,20,21)])
def test_losses_and_heat_are_those_of_the_item(folder, tmp_path, source, kind, workers, skip):
    "Skipped, repeated, reordered, weighted, partial"
    learn = make_learner(folder, proxy(losses=source, p=0.), kind=kind, workers=workers, skip=skip)
    pa = fit(learn).proxy_attention
    known = pa.interp.known.nonzero()[:,0].tolist()
    assert not set(known)&set(skip) and len(known)>=(N-len(skip) if source=='exact' else 15)
    assert [pa.interp.losses[i].item() for i in known]==pytest.approx([loss_of(i) for i in known], abs=1e-5)
    assert pa.interp.targs[known].tolist()==[label(i) for i in known]
    assert set(pa.store)==set(known)
    for i in pa.store: assert torch.equal(pa.store[i], heat_of_item(i))

def test_running_losses_go_by_the_iterator_that_trains(folder):
    "Another callback looks into the loader in the middle of each step"
    class Peeks(Callback):
        def before_batch(self):
            if self.training: next(iter(self.dls.train))
    pa = fit(make_learner(folder, proxy(losses='running', p=0.), Peeks())).proxy_attention
    known = pa.interp.known.nonzero()[:,0].tolist()
    assert [pa.interp.losses[i].item() for i in known]==pytest.approx([loss_of(i) for i in known], abs=1e-5) and len(known)>30

@pytest.mark.parametrize('donor', ['previous','balanced'])
@pytest.mark.parametrize('p', [.5,1.])
def test_a_donor_has_not_been_transformed(folder, tmp_path, p, donor):
    "An item transform that works in place works once on every pixel"
    class Brighter(Transform):
        def encodes(self, x:PILImage):
            x.paste(Image.merge('RGB', [*x.split()[:2], x.split()[2].point(lambda o: o+5)]))
            return x
    learn = make_learner(folder, proxy(p=p, donor=donor), tfms=[Brighter()])
    blues = []
    class Look(Callback):
        def before_batch(self):
            x = (self.learn.xb[0].as_subclass(Tensor)[:,2]*255).round()
            if self.training: blues.append((x-torch.from_numpy(picture(0)[...,2])).unique().tolist())
    learn.add_cb(Look())
    fit(learn)
    assert all(o==[5.] for o in blues)

@pytest.mark.parametrize('tfms', [(), (Flip(p=.5), Brightness())])
def test_numbers_change_nothing(folder, tmp_path, tfms):
    "Batches are the same bits with numbers and without: the pipeline knows that it trains"
    def sums(losses):
        got = []
        class Sum(Callback):
            def before_batch(self):
                if self.training: got.append(self.learn.xb[0].double().sum().item())
        learn = make_learner(folder, proxy(losses=losses, select=lambda losses: [], steps=[1,'p',1]), Sum())
        learn.dls.train.after_batch.fs += L(*tfms)
        fit(learn, 'fit', 2, 0.)
        return got
    assert sums('exact')==sums('running')

def test_state_is_flat_over_many_steps(folder):
    "A table of steps and one of items: not a row for every item of every step"
    sizes = []
    class Size(Callback):
        order = ProxyAttention.order+1
        def after_epoch(self): sizes.append(len(pickle.dumps(self.learn.proxy_attention.state_dict())))
    fit(make_learner(folder, proxy(steps=lambda e,n: e<50), Size()), 'fit', 51, 0.)
    grown = (sizes[49]-sizes[4])/45
    assert grown<700, f'{grown:.0f} bytes per step, whatever the number of items'
    assert grown/N<20

# Whose pixels come in

@pytest.mark.parametrize('donor,share', [('balanced', (1/3,.06)), ('same_class', (1.,0)), ('other_class', (0.,0)), ('alike', (0.,0))])
def test_classes_of_donors(folder, tmp_path, donor, share):
    "Of three classes, one is as rare as a fifth of the others"
    learn = make_learner(folder, proxy(p=1., donor=donor, steps=[1,'p',9]), seen := Witness(tmp_path/'seen'))
    fit(learn, 'fit', 10, 0.)
    rows = seen.proxies()
    same = np.mean([label(o.item)==label(o.donor) for o in rows])
    assert same==pytest.approx(share[0], abs=share[1]+1e-9)
    if donor=='balanced': assert max(abs(np.mean([label(o.donor)==c for o in rows])-1/3) for c in range(3))<.06

@pytest.mark.parametrize('kind', ['usual','weighted'])
def test_images_that_the_data_set_cannot_give(folder, tmp_path, kind):
    "Not the first one, not those that are explained, and no donor"
    lost = (3,4,5,30) if kind=='weighted' else (0,3,4,5,30) # fastai itself tries item 0
    class Some:
        "A data set of one's own"
        def __len__(self): return N
        def __getitem__(self, i):
            if i in lost: raise SkipItemException
            return torch.from_numpy(picture(i)).permute(2,0,1).float()/255, label(i)
    cls = WeightedDL if kind=='weighted' else DataLoader
    kw = dict(wgts=np.ones(N)) if kind=='weighted' else dict(shuffle=True)
    dls = DataLoaders(cls(Some(), bs=8, num_workers=0, **kw), DataLoader(Some(), bs=8))
    pa = proxy(p=1., donor='balanced', fill='swap')
    learn = Learner(dls, Net(), loss_func=CrossEntropyLossFlat(), cbs=pa)
    fit(learn)
    assert set(pa.store)==set(range(N))-set(lost)
    assert set(pa.log.donor[pa.log.served>0])<=set(range(N))-set(lost)
    assert [pa.interp.losses[i].item() for i in pa.store]==pytest.approx([loss_of(i) for i in pa.store], abs=1e-5)

def test_heat_where_an_item_cannot_be_had(folder):
    "It has none, and the others have their own"
    skip,learn = (1,7,20),make_learner(folder, skip=(1,7,20))
    heat,lost,*_ = heat_of_items(learn, Settings(attribution=look, scale=False), torch.arange(N), (SIZE,SIZE))
    assert lost.nonzero()[:,0].tolist()==list(skip)
    for i in set(range(N))-set(skip): assert torch.equal(heat[i], heat_of_item(i))

def test_a_table_cut_off_before_its_first_row_is_none(tmp_path):
    "kill -9 between the making of a file and its first row"
    from proxy_attention.proxy.record import Record, put_back
    for o in ('proxy_log.csv','served.csv','manifest.csv'): (tmp_path/o).touch()
    put_back(tmp_path, Record())
    assert not list(tmp_path.iterdir())

def test_a_row_that_was_cut_off_is_removed(tmp_path):
    "kill -9 while a proxy of epoch 12 is written: what remains looks like a row of epoch 1"
    from proxy_attention.proxy.record import Record, put_back
    text = 'fit,epoch,item\n0,1,3\n'
    (tmp_path/'served.csv').write_text(text+'0,1')
    put_back(tmp_path, Record(epochs=[dict(fit=0, epoch=1)]))
    assert (tmp_path/'served.csv').read_text()==text
    (tmp_path/'served.csv').write_text('fit,epo')
    put_back(tmp_path, Record())
    assert not (tmp_path/'served.csv').exists()

def test_classes_called_None_or_NA_stay_so_in_what_was_saved(tmp_path):
    "pandas would read them as missing, and write empty cells"
    from proxy_attention.proxy.record import Record, put_back
    text = 'fit,epoch,item,label,area\n0,1,3,None,0.10\n0,1,4,NA,\n0,2,5,cat,0.3\n'
    (tmp_path/'proxy_log.csv').write_text(text)
    put_back(tmp_path, Record(steps=[dict(fit=0, epoch=1)]))
    assert (tmp_path/'proxy_log.csv').read_text()==text.removesuffix('0,2,5,cat,0.3\n')

@pytest.mark.parametrize('n_most', [12,40])
def test_beside_their_originals_in_a_loader_of_ones_own_order(few, quiet, n_most):
    "`augment` adds to the items that the loader would have drawn"
    learn = digits_learner(few, cbs=ProxyAttention(mode='augment', select='all', p=1., start=1, fill='zero'))
    dl,seen = learn.dls.train,[]
    dl.get_idxs = lambda: list(range(0, n_most, 2))
    dl.n,dl.drop_last = n_most//2,False
    class Count(Callback):
        def before_batch(self):
            if self.training: seen.append((self.epoch, len(self.yb[0])))
    learn.add_cb(Count())
    quiet(learn, 'fit', 2, 0.)
    n = [sum(k for e,k in seen if e==o) for o in (0,1)]
    assert n==[n_most//2, n_most] and learn.proxy_attention.served['item'].tolist()!=[] and len(learn.proxy_attention.served)==n_most//2
    assert set(learn.proxy_attention.served['item'])==set(range(0, n_most, 2))
    assert dl.get_idxs()==list(range(0, n_most, 2)) and dl.n==n_most//2

@pytest.mark.filterwarnings('error')
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_nothing_shadows_an_attribute_of_the_learner(few, quiet):
    "fastai warns where a callback sets, in a fit, what the learner or its model has"
    learn = digits_learner(few, cbs=(pa := ProxyAttention(start=1, share=.5)))
    for k in (*vars(pa), *'store interp proxies real size attr data masker told serves history served'.split()):
        if k!='learn' and not hasattr(learn.model, k): object.__setattr__(learn.model, k, 'that of the model')
    quiet(learn, 'fit', 2, 1e-3)
    assert len(pa.store)

@pytest.mark.parametrize('kind', ['a crop of ones own', 'torchvision', 'batch'])
def test_transforms_that_hide_a_part_are_refused(few, quiet, kind):
    from torchvision import transforms as T
    class Own(Transform):
        def __init__(self, f): self.f = f
        def encodes(self, x:PILImage): return PILImage(self.f(x))
    class Batch(Transform):
        order = 99
        def encodes(self, x:TensorImage): return x[...,8:,:24]
    tfms = dict(batch=dict(batch_tfms=Batch()), torchvision=dict(item_tfms=Own(T.CenterCrop(20)))).get(
        kind, dict(item_tfms=Own(lambda x: x.crop((0,0,20,32)).resize((32,32)))))
    dls = ImageDataLoaders.from_folder(few, train='train', valid='valid', bs=16, num_workers=0, **tfms)
    with pytest.raises(ValueError, match='do not show the whole image'):
        quiet(Learner(dls, digits_net(), cbs=ProxyAttention(start=1)), 'fit', 2)

@pytest.mark.parametrize('tfms', [
    dict(item_tfms=Resize(24)), dict(item_tfms=RandomResizedCrop(24)), dict(item_tfms=[Resize(40), CropPad(32)]),
    dict(batch_tfms=aug_transforms(size=24)), dict(batch_tfms=[Normalize.from_stats(*imagenet_stats), RandomResizedCropGPU(28)])])
def test_fastais_own_transforms_are_no_trouble(few, quiet, tfms):
    dls = ImageDataLoaders.from_folder(few, train='train', valid='valid', bs=16, num_workers=0, **tfms)
    learn = quiet(Learner(dls, digits_net(), cbs=ProxyAttention(start=1)), 'fit', 2, 1e-3)
    assert len(learn.proxy_attention.store)

def test_statistics_are_those_of_the_data_set(few, quiet):
    "In a second step, too, when the loader serves proxies already"
    learn = digits_learner(few, cbs=ProxyAttention(select='all', p=1., steps=[1,'p',1,'p',1], fill='dataset_max', across=6))
    quiet(quiet(learn, 'fit', 3, 0.), 'fit', 3, 0.)
    imgs = np.stack([np.asarray(o[0]) for o in learn.dls.train_ds])
    pa = learn.proxy_attention
    assert pa.fit_state.proven.data.max==imgs.max()
    assert np.allclose(pa.fit_state.proven.data.mean, imgs.mean((0,1,2)), atol=.01)

def test_the_bytes_of_kept_donors_are_counted_once(few, quiet, monkeypatch):
    "One image per class is kept for donors; what they hold is a running sum, and stays under the limit"
    import proxy_attention.proxy.serving as serving
    dls = ImageDataLoaders.from_folder(few, train='train', valid='valid', bs=16, num_workers=0)
    learn,asked,real = Learner(dls, digits_net()),[],serving._bytes
    def counted(img):
        asked.append(1)
        return real(img)
    monkeypatch.setattr(serving, '_bytes', counted)
    seen,keep = [],serving.ServedItem.keep
    def watched(self, i, item):
        keep(self, i, item)
        seen.append((self.held, sum(real(serving.image_of(o)) for _,o in self.images.values()), len(self.images)))
    monkeypatch.setattr(serving.ServedItem, 'keep', watched)
    def fitted(): quiet(learn, 'fit', 2, 1e-3, cbs=ProxyAttention(select='all', p=.5, fill='swap', donor='other_class', start=1))
    fitted()
    assert all(held==holds for held,holds,_ in seen) and max(n for *_,n in seen)>1 and len(asked)<=2*len(seen)
    monkeypatch.setattr(serving, '_at_hand', 2*seen[0][0])
    seen.clear()
    fitted()
    assert all(held==holds<=2*seen[0][0] for held,holds,_ in seen)
