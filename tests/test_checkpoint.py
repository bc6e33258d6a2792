"A run that was cut off, anywhere, goes on and ends with the same bits. Run as a program, this file is the process that is killed"
import os, sys
if __name__=='__main__': # before torch is imported: a process that forks has one thread and no GPU
    os.environ.update(OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='', MPLBACKEND='Agg')
import collections, errno, hashlib, json, random, resource, signal, subprocess, time, warnings
from pathlib import Path
import pytest, torch
with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    from fastai.vision.all import *
    from fastai.callback.training import GradientAccumulation, GradientClip
    from proxy_attention.all import *
from proxy_attention.core import write_whole
from proxy_attention.attribution.heatmap import HeatmapStore
from proxy_attention.experiment.checkpoint import read_checkpoint
from proxy_attention.experiment.identity import versions
import proxy_attention.experiment.checkpoint as room
import proxy_attention.core as core
import proxy_attention.proxy.callback as callback_room
import proxy_attention.proxy.step as step_room

N = 4 # epochs

def make(path, folder=None, cbs=(), resume=True, best='accuracy', proxy=None, workers=0, bs=16, net=None, own=None, **kwargs):
    "Dropout, augmentation, and a proxy step after each epoch from the first"
    set_seed(0)
    dls = ImageDataLoaders.from_folder(
        Path(path), train='train', valid='valid', bs=bs, num_workers=workers, batch_tfms=[Flip(), Brightness()])
    net = nn.Sequential(*digits_net()[:-1], nn.Dropout(.3), nn.Linear(64,10)) if net is None else net
    usual = dict(p=.5, clear=True, folder=own) | ({} if 'steps' in (proxy or {}) else dict(start=1))
    pa = [] if proxy is False else [ProxyAttention(**(usual|(proxy or {})))]
    ckpt = [Checkpoint(folder, best=best, resume=resume)] if folder else []
    return Learner(dls, net, metrics=accuracy, cbs=[*pa, *cbs, *ckpt], **(dict(model_dir=Path.cwd()/'models')|kwargs))

def bits(o, h=None):
    "A digest of nested data, bit for bit"
    h = h or hashlib.sha256()
    if isinstance(o, dict):
        for k in o:
            h.update(str(k).encode())
            bits(o[k], h)
    elif isinstance(o, (list,tuple,L)):
        h.update(b'[')
        for v in o: bits(v, h)
    elif isinstance(o, Tensor): h.update(str(o.dtype).encode()+o.detach().cpu().contiguous().numpy().tobytes())
    elif isinstance(o, np.ndarray): h.update(o.tobytes())
    elif isinstance(o, (float,np.floating)): h.update(float(o).hex().encode())
    else: h.update(repr(o).encode())
    return h.hexdigest()

def ends(learn, folder=None):
    "All that a finished run leaves, each thing as a digest"
    rec,res = learn.recorder,{}
    res = dict(
        model=bits(learn.model.state_dict()), opt=bits(learn.opt.state_dict()['state']),
        hypers=bits([sorted(h.items()) for h in learn.opt.hypers]),
        rng=bits([random.getstate(), np.random.get_state()[1:3], torch.get_rng_state()]),
        loader=bits([o.rng.getstate() for o in learn.dls.loaders]),
        **{k:bits(getattr(rec, k)) for k in ('lrs','iters','losses','values')},
        smooth=bits(rec.smooth_loss.value), hps=bits(getattr(rec, 'hps', None)))
    if hasattr(learn, 'proxy_attention'):
        pa = learn.proxy_attention
        res |= dict(
            log=bits(pa.log.to_csv()), history=bits(pa.history.drop(columns='seconds').to_csv()),
            idxs=bits(pa.store.idxs), grids=bits(pa.store.grids),
            interp=bits([pa.interp.losses, pa.interp.preds, pa.interp.targs]) if pa.interp else '')
        if pa.folder:
            res |= dict(csv=bits([(pa.folder/o).read_text() for o in ('proxy_log.csv','served.csv','proxies.json')]),
                        heat=bits(HeatmapStore.load(pa.folder/'heat.npz').grids))
    if folder: res |= dict(best=bits({k:v for k,v in read_checkpoint(folder/'best.pth').items()}))
    return res

def fit(learn, how='fit_one_cycle', *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', ProxyWarning)
        with learn.no_bar(), learn.no_logging(): getattr(learn, how)(*(args or (N, 3e-3)), **kwargs)
    return learn

# The process that is killed

def at_point(point):
    "Kill this process at a place of the run: 'batch', 'step', 'write', 'renamed', … and when it comes there for the nth time"
    name,n = point.split(':')
    left = [int(n)]
    def reached(*_):
        left[0] -= 1
        if left[0]==0: os.kill(os.getpid(), signal.SIGKILL)
    if name=='half': # of a checkpoint is written
        save = torch.save
        def half(o, f):
            save(o, b := io.BytesIO())
            f.write(b.getvalue()[:len(b.getvalue())//2])
            f.flush()
            reached()
            f.write(b.getvalue()[len(b.getvalue())//2:])
        room.torch.save = half
    elif name in ('whole','renamed'): # written but not renamed, just renamed
        replace = os.replace
        def killing(*a):
            if 'pth' in str(a[1]) and name=='whole': reached()
            replace(*a)
            if 'pth' in str(a[1]) and name=='renamed': reached()
        core.os.replace = killing
    elif name=='heat': # in a proxy step, its heat computed
        own = step_room.heat_of_items
        def heat_of_items(*args, **kwargs):
            res = own(*args, **kwargs)
            reached()
            return res
        step_room.heat_of_items = heat_of_items
    elif name=='logged': # the step is in the log on disk, and not in a checkpoint
        own = callback_room.keep_step
        def keep_step(*args):
            own(*args)
            reached()
        callback_room.keep_step = keep_step
    elif name=='served': # what an epoch has served is on disk, and not in a checkpoint
        own = callback_room.append_served
        def append_served(*args):
            own(*args)
            reached()
        callback_room.append_served = append_served
    else: return [type('Killer', (Callback,), {name:reached, 'order':999})()]
    return []

class Limit(Callback):
    "From the second epoch on, the operating system refuses to write more than so many bytes to a file"
    def after_epoch(self):
        if self.epoch==1: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))

def full_disk(path, run, out):
    "A run whose disk is full from the second epoch on"
    learn = make(path, run, best=None, proxy=False, cbs=[Limit()])
    with warnings.catch_warnings(record=True) as said, learn.no_bar(), learn.no_logging():
        warnings.simplefilter('always')
        learn.fit_one_cycle(N, 3e-3)
    out.write_text(json.dumps(dict(
        warned=len([o for o in said if 'could not be written' in str(o.message)]),
        epochs=len(learn.recorder.values), kept=read_checkpoint(run/'last.pth')['epoch'])))

def child(path, out, run, own, point, log):
    "One life of a run; it writes what it ends with"
    try:
        if point=='full': full_disk(Path(path), Path(run), out); os._exit(0)
        learn = make(Path(path), run and Path(run), at_point(point) if point else [], own=own and Path(own))
        fit(learn)
        write_whole(out, lambda f: f.write(json.dumps(ends(learn, run and Path(run))).encode()))
        os._exit(0)
    except BaseException:
        import traceback
        Path(log).write_text(traceback.format_exc())
        os._exit(1)

def server(path, tmp):
    "Fork, kill, fork again, until the run has ended; say how often it was killed"
    tmp,rng = Path(tmp), random.Random(1)
    torch.set_num_threads(1)
    def live(out, run, own, point=None, after=None):
        pid = os.fork()
        if not pid: child(path, tmp/out, run, own, point, tmp/'error')
        if after is not None:
            time.sleep(after)
            os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        if (tmp/'error').exists(): raise RuntimeError((tmp/'error').read_text())
        return os.WIFSIGNALED(status)
    start = time.perf_counter()
    live('whole.json', tmp/'whole', tmp/'whole_own')
    took,said = time.perf_counter()-start, {}
    placed = [
        # in the first epoch and around its checkpoints
        'after_batch:1','half:1','half:2','whole:1','renamed:1','whole:2','heat:1','logged:1','renamed:2',
        'after_loss:9','served:1','logged:1','heat:1','before_validate:1','renamed:1','after_epoch:1','half:1',
        'before_train:1','whole:1','after_epoch:1','after_fit:1','before_fit:1']
    kills = sum(live('placed.json', tmp/'placed', tmp/'placed_own', o) for o in placed)
    said['placed'],said['placed_of'] = kills,len(placed)
    live('placed.json', tmp/'placed', tmp/'placed_own')
    kills = 0
    while not (tmp/'random.json').exists() and kills<60:
        kills += live('random.json', tmp/'random', tmp/'random_own', after=rng.uniform(0, .3)*took if kills<12 else None)
    said['random'] = kills
    live('twice.json', tmp/'random', tmp/'random_own') # run once more when all is done
    live('full.json', tmp/'full', None, 'full')
    print(json.dumps(said))

if __name__=='__main__': sys.exit(server(*sys.argv[1:]))

@pytest.mark.limit(110)
def test_killed_again_and_again_ends_with_the_same_bits(tmp_path):
    path = digits(tmp_path/'data', n=80)
    res = subprocess.run([sys.executable, __file__, path, tmp_path], capture_output=True, text=True,
                         env=os.environ|dict(PYTHONPATH=os.pathsep.join(sys.path)))
    assert res.returncode==0, res.stderr[-3000:]
    said,load = json.loads(res.stdout.splitlines()[-1]), lambda o: json.loads((tmp_path/f'{o}.json').read_text())
    assert said['placed']==said['placed_of'] and said['random']>=5 and said['placed']+said['random']>=20, said
    whole = load('whole')
    for o in ('placed','random'): assert load(o)==whole, (o, [k for k in whole if load(o)[k]!=whole[k]])
    assert load('twice')['model']==whole['model'] and load('twice')['values']==whole['values']
    assert load('full')==dict(warned=3, epochs=N, kept=1), 'a full disk, without a mock'
    for o in ('placed','random','full'):
        # nothing half written is left
        assert sorted(f.name for f in (tmp_path/o).iterdir())==['.lock',*(['best.pth'] if o!='full' else []),'last.pth']

# In one process

class Cut(Callback):
    "A Ctrl-C, or another error, in the middle of an epoch of a fit"
    def __init__(self, epoch=2, batch=1, fit=1, ex=KeyboardInterrupt): self.where,self.which,self.ex = (epoch,batch),fit,ex
    def before_fit(self): self.count = self.__dict__.get('count', 0)+1
    def after_batch(self):
        if self.training and self.count==self.which and (self.epoch,self.iter)==self.where: raise self.ex
    def state_dict(self): return {}
    def load_state_dict(self, state): pass

@pytest.fixture(scope='module')
def small(tmp_path_factory): return digits(tmp_path_factory.mktemp('data')/'digits', n=80)

@pytest.fixture(scope='module')
def whole(small, tmp_path_factory):
    "What a run ends with that was never cut"
    return ends(fit(make(small, tmp_path_factory.mktemp('whole')/'run')))

def cut_and_gone_on(small, tmp_path, how='fit_one_cycle', args=(N, 3e-3), cut=(2,1,1), kw=lambda: {}, **fit_kw):
    whole = ends(fit(make(small, tmp_path/'whole', **kw()), how, *args, **fit_kw), tmp_path/'whole')
    k = kw()
    with pytest.raises(KeyboardInterrupt):
        fit(make(small, tmp_path/'cut', **k|dict(cbs=[*k.get('cbs', []), Cut(*cut)])), how, *args, **fit_kw)
    again = fit(make(small, tmp_path/'cut', **kw()), how, *args, **fit_kw)
    res = ends(again, tmp_path/'cut')
    assert res==whole, [k for k in whole if res[k]!=whole[k]]
    return again

class Late(Callback):
    "Remembers things of all plain kinds, and draws at random"
    order = 80
    def before_fit(self): self.seen,self.best_of,self.arr,self.pairs,self.bag = L(),None,np.zeros(3),{},set()
    def after_epoch(self):
        self.seen.append(random.random())
        self.best_of = max(self.seen)
        self.arr = self.arr+np.random.rand(3)
        self.pairs[self.epoch] = (torch.rand(2),'x')
        self.bag.add(self.epoch)

plain = lambda *cbs, **kw: dict(kw=lambda: dict(proxy=False, cbs=[o() for o in cbs], **kw))
proxies = lambda **kw: dict(kw=lambda: dict(proxy=kw))
cases = dict(
    one_cycle={},
    constant=dict(how='fit', args=(N, 1e-3), **plain()),
    sgdr=dict(how='fit_sgdr', args=(2, 2), **plain()),
    fit_proxy=dict(how='fit_proxy', **proxies(select='all', every=None, clear=False, p=1., losses='running')),
    running=proxies(losses='running', select='random'),
    augment=proxies(mode='augment', fill='noise'),
    data_fill=proxies(fill='mean', rule='random'),
    labels=proxies(select='all', losses='running', rule='box', alpha=5., fill='move', labels='mix'),
    erased=proxies(select='all', rule='rest', keep=.3, fill='erase'),
    plateau=proxies(steps=Plateau('accuracy')),
    accumulation=plain(partial(GradientAccumulation, 40)),
    mixup=plain(MixUp, GradientClip),
    half=plain(MixedPrecision),
    torch_opt=plain(opt_func=partial(OptimWrapper, opt=torch.optim.AdamW)),
    ranger=plain(opt_func=ranger),
    trackers=dict(how='fit', args=(N, 1e-2), **plain(
        partial(ReduceLROnPlateau, patience=1, min_delta=1.), partial(SaveModelCallback, 'accuracy', with_opt=True))),
    workers=dict(args=(2, 3e-3), cut=(1,1,1), kw=lambda: dict(workers=2)))

@pytest.mark.parametrize('case', cases)
@pytest.mark.filterwarnings('ignore:CUDA is not:UserWarning', 'ignore:torch.cuda.amp:UserWarning')
def test_gone_on_with_is_the_same(small, tmp_path, case, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cut_and_gone_on(small, tmp_path, **cases[case])

def test_what_was_served_last_is_known_after_a_resume(small, tmp_path):
    "All epochs are complete: no further one is served"
    whole = fit(make(small, tmp_path/'run'))
    again = fit(make(small, tmp_path/'run')).proxy_attention
    assert len(again.served) and again.served.equals(whole.proxy_attention.served)

def test_what_prune_has_removed_and_logged(small, tmp_path):
    again = cut_and_gone_on(small, tmp_path, kw=lambda: dict(proxy=False, cbs=[Prune(.6, start=1, every=1, finish=3)]))
    whole = fit(make(small, tmp_path/'third', [Prune(.6, start=1, every=1, finish=3)], proxy=False)).prune
    assert again.prune.history.epoch.tolist()==[0,1,2] and again.prune.log.equals(whole.log)
    assert all(torch.equal(o, whole.masks[k]) for k,o in again.prune.masks.items())

def test_what_callbacks_know(small, tmp_path):
    again = cut_and_gone_on(small, tmp_path, kw=lambda: dict(cbs=[Late()]))
    late = again.late
    whole = fit(make(small, tmp_path/'third', [Late()])).late
    assert (isinstance(late.seen, L) and late.seen==whole.seen and late.best_of==whole.best_of
            and (late.arr==whole.arr).all() and late.bag==whole.bag==set(range(N)))
    assert all(torch.equal(late.pairs[k][0], whole.pairs[k][0]) for k in range(N))

@pytest.mark.parametrize('cut,across', [((0,1,1),None), ((0,1,2),None), ((0,1,2),3), ((1,2,2),3)])
def test_fine_tune_cut_in_either_phase(small, tmp_path, cut, across):
    "Two fits, frozen and unfrozen, and one schedule over both"
    split = lambda m: L(m[0:4], m[4:]).map(params)
    proxy = dict(losses='running', fill='mean', **(dict(steps=[1,'p',1,'p',1], across=3) if across else {}))
    again = cut_and_gone_on(small, tmp_path, 'fine_tune', (2, 3e-3), cut, lambda: dict(splitter=split, proxy=proxy))
    assert again.checkpoint.fits==2 and len(again.proxy_attention.history)

def test_a_successor_begins_with_the_weights_of_its_suspect_after_a_cut(small, tmp_path):
    "The head is trained in a first fit, which is skipped; the suspect and its successor begin with its result"
    def go(name, *cbs):
        learn = make(small, tmp_path/name, cbs, proxy=False, splitter=lambda m: L(m[0:4], m[4:]).map(params))
        learn.add_cb(ProxyAttention.rehearsed(steps=lambda epoch, n_epoch: epoch==0, folder=tmp_path/name/'own'))
        learn.freeze()
        return fit(learn, 'fine_tune_proxy', 2, 3e-3)
    whole = ends(go('whole'))
    with pytest.raises(KeyboardInterrupt): go('cut', Cut(1, 1, fit=2)) # while the suspect is trained
    again = go('cut')
    res = ends(again)
    assert again.checkpoint.fits==3 and res==whole, [k for k in whole if res[k]!=whole[k]]

@pytest.mark.parametrize('same_learner', [True,False])
def test_ctrl_c_in_a_notebook(small, whole, tmp_path, same_learner):
    "The same cell again: with the learner as the Ctrl-C left it, or a new one"
    learn = make(small, tmp_path/'run', [cut := Cut()], resume=False)
    with pytest.raises(KeyboardInterrupt): fit(learn)
    learn.remove_cb(cut)
    with pytest.raises(FileExistsError, match='learn.checkpoint.resume = True'): fit(learn)
    learn.checkpoint.resume = True
    if not same_learner: learn = make(small, tmp_path/'run')
    assert ends(fit(learn))==whole
    assert '_with_events' not in learn.__dict__ and not learn.lock.locked()

def test_a_log_is_closed_too(small, tmp_path):
    "`RunBoard` and `Checkpoint` both stand around the epochs of a fit, and neither takes the other away"
    def run(*cut):
        learn = make(small, tmp_path/'run', [RunBoard(tmp_path/'log', resume=True), *cut], proxy=False)
        if not cut: fit(learn)
        else:
            with pytest.raises(KeyboardInterrupt): fit(learn)
        board, = [o for o in learn.cbs if isinstance(o, RunBoard)]
        assert board.writer is None and not board.begun and '_with_events' not in learn.__dict__
    run(Cut(0))
    run(Cut(2)) # after epochs that are passed over
    run()
    run() # all are passed over

def test_cut_in_the_writing(small, whole, tmp_path, monkeypatch):
    "Ctrl-C while a checkpoint is written: the one before stays, nothing half written is left"
    own,n = torch.save,[0]
    def save(o, f):
        n[0] += 1
        if n[0]==6: f.write(b'half'); raise KeyboardInterrupt
        own(o, f)
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(torch, 'save', save)
        fit(make(small, tmp_path/'run'))
    assert 0<read_checkpoint(tmp_path/'run'/'last.pth')['epoch']<N
    assert not list((tmp_path/'run').glob('.*tmp'))
    assert ends(fit(make(small, tmp_path/'run')))==whole

def test_watching_changes_nothing(small, tmp_path):
    "With or without checkpoints, the run is the same, and validation or predictions in between write none"
    learn = make(small, tmp_path/'run', proxy=False)
    assert ends(fit(learn))==ends(fit(make(small, proxy=False)))
    before = (tmp_path/'run'/'last.pth').read_bytes()
    with learn.no_bar():
        learn.validate()
        learn.get_preds()
    assert (tmp_path/'run'/'last.pth').read_bytes()==before and learn.checkpoint.fits==1

def test_early_stopping(small, tmp_path, capsys):
    "Its last epoch is trained again, and the end is the same"
    kw = lambda: dict(cbs=[EarlyStoppingCallback('accuracy', min_delta=2., patience=2)])
    again = cut_and_gone_on(small, tmp_path, kw=kw, cut=(1,1,1))
    assert len(again.recorder.values)==2+1
    assert ends(fit(make(small, tmp_path/'cut', **kw())), tmp_path/'cut')['model']==ends(again, tmp_path/'cut')['model']
    # more patience: it goes on
    assert len(fit(make(small, tmp_path/'cut', cbs=[EarlyStoppingCallback('accuracy', min_delta=2., patience=4)])).recorder.values)==N

def test_best_is_the_best(small, tmp_path):
    "The weights of the best epoch, and not of another"
    learn = fit(make(small, tmp_path/'run', best='valid_loss', proxy=False), 'fit', 6, .3)
    losses = [o[1] for o in learn.recorder.values]
    new = make(small, proxy=False)
    best = load_best(new, tmp_path/'run')
    assert best==dict(fit=1, epoch=int(np.argmin(losses)), monitor='valid_loss', value=min(losses))
    with new.no_bar(): assert abs(new.validate()[0]-min(losses))<1e-6
    torch.manual_seed(0)
    with pytest.raises(ValueError, match='The weights of the model'):
        load_best(make(small, net=nn.Sequential(nn.Flatten(), nn.Linear(3*32*32,10))), tmp_path/'run')

def test_nan_is_never_best(small, tmp_path):
    class Nan(Callback):
        order = 55
        def after_epoch(self):
            if self.epoch==0: self.recorder.values[-1][1] = float('nan')
    fit(make(small, tmp_path/'run', [Nan()], best='valid_loss', proxy=False), 'fit', 2)
    assert read_checkpoint(tmp_path/'run'/'best.pth')['epoch']==1

# What goes wrong

def test_full_disk(small, tmp_path, monkeypatch):
    "Training goes on, says so, and the checkpoint before stays; at the beginning it is an error"
    learn,own,n = make(small, tmp_path/'run', best=None, proxy=False), torch.save, [0]
    def save(o, f):
        n[0] += 1
        if n[0]>2: f.write(b'some'); raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        own(o, f)
    with monkeypatch.context() as m:
        m.setattr(torch, 'save', save)
        with warnings.catch_warnings(record=True) as said, learn.no_bar(), learn.no_logging():
            warnings.simplefilter('always')
            learn.fit_one_cycle(N, 3e-3)
        assert [re.search('after epoch (.) could not be written .*No space left on device.*training continues', str(o.message))[1]
                for o in said if o.category is ProxyWarning]==['1','2','3']
        assert len(learn.recorder.values)==N and read_checkpoint(tmp_path/'run'/'last.pth')['epoch']==1
        assert not list((tmp_path/'run').glob('.*tmp'))
        with pytest.raises(OSError, match='No checkpoint can be written.*No space left'):
            fit(make(small, tmp_path/'other', best=None))
    assert ends(fit(make(small, tmp_path/'run', best=None, proxy=False)))==ends(learn)

@pytest.fixture(scope='module')
def done(small, tmp_path_factory):
    "The folder of a run that was cut off"
    d = tmp_path_factory.mktemp('done')/'run'
    with pytest.raises(KeyboardInterrupt): fit(make(small, d, [Cut()]))
    return d

@pytest.fixture
def half(done, tmp_path): return Path(shutil.copytree(done, tmp_path/'half'))

@pytest.mark.parametrize('how', ['cut','flip','empty','text','zip','pickle','other'])
def test_broken_checkpoint(small, half, how, tmp_path):
    f = half/'last.pth'
    raw = bytearray(f.read_bytes())
    if how=='cut': f.write_bytes(raw[:len(raw)//2])
    if how=='flip': raw[len(raw)//2] ^= 4; f.write_bytes(raw)
    if how=='empty': f.write_bytes(b'')
    if how=='text': f.write_text('not a checkpoint')
    if how=='zip': np.savez(f.open('wb'), a=np.zeros(3))
    if how=='pickle': torch.save(dict(version=1, f=Evil(tmp_path/'ran')), f)
    if how=='other': torch.save(dict(model=torch.zeros(3)), f)
    before = f.read_bytes()
    with pytest.raises(ValueError, match='is not a checkpoint of this library, or it is damaged.*delete it'): fit(make(small, half))
    assert f.read_bytes()==before and not (tmp_path/'ran').exists()

class Evil:
    "Leaves a file where it is unpickled"
    def __init__(self, at): self.at = at
    def __reduce__(self): return os.mkdir, (str(self.at),)

def test_version_of_another_time(small, half):
    torch.save(dict(version=99), half/'last.pth')
    with pytest.raises(ValueError, match='another version of this library .format 99, here 2'): fit(make(small, half))

def other_split(path, tmp_path):
    new = Path(shutil.copytree(path, tmp_path/'other'))
    a = next((new/'train'/'3').iterdir()); a.rename(a.with_name('9999.png'))
    return new

@pytest.mark.parametrize('says,kw,args', [
    ('The number of epochs: 4 there, 7 here', {}, (7, 3e-3)),
    ('The schedule, lr', {}, (N, 1e-3)),
    ('The batch size: 16 there, 8 here', dict(bs=8), ()),
    ('The weights of the model', dict(net=lambda: digits_net()), ()),
    ('The layers of the model', dict(net=lambda: nn.Sequential(*digits_net()[:-1], nn.Dropout(.4), nn.Linear(64,10))), ()),
    ('The optimizer, name: fastai.optimizer.Adam there, fastai.optimizer.SGD here', dict(opt_func=SGD), ()),
    ('The weight decay: 0.01 there, 0.3 here', dict(wd=.3), ()),
    ('The weight decay of biases and normalization: False there, True here', dict(wd_bn_bias=True), ()),
    ('ProxyAttention, p: 0.5 there, 0.9 here', dict(proxy=dict(p=.9)), ()),
    ('ProxyAttention: .* absent here', dict(proxy=False), ()),
    ('The transforms', 'augment', ()),
    ('The loss function', dict(loss_func=CrossEntropyLossFlat(label_smoothing=.1)), ()),
    ('The training images, digest', 'split', ()),
    ('The number of images', 'fewer', ())])
def test_another_run(small, half, tmp_path, says, kw, args):
    path = small
    if kw=='split': path,kw = other_split(small, tmp_path),{}
    if kw=='fewer': path,kw = digits(tmp_path/'fewer', n=70),{}
    other,kw = ([Brightness(.5)],{}) if kw=='augment' else (None,kw)
    if 'net' in kw: kw = dict(net=kw['net']())
    learn,before = make(path, half, **kw),(half/'last.pth').read_bytes()
    if other: learn.dls.train.after_batch.add(other)
    was = bits(learn.model.state_dict())
    with pytest.raises(ValueError, match=f'(?s)is the checkpoint of another run. {says}'): fit(learn, 'fit_one_cycle', *args)
    assert bits(learn.model.state_dict())==was and (half/'last.pth').read_bytes()==before

@pytest.mark.parametrize('kind,there,here,says', [
    (MixUp, .4, .9, 'mix_up: 0.4 there, 0.9 here'), (CutMix, .4, None, 'cut_mix: 0.4 there, absent here'),
    (GradientAccumulation, 32, 64, 'gradient_accumulation: 32 there, 64 here'), (GradientClip, None, 1., 'gradient_clip: absent there')])
def test_another_callback_that_changes_a_step(small, tmp_path, kind, there, here, says):
    def made(arg): return make(small, tmp_path/'c', [] if arg is None else [kind(arg)], proxy=False)
    class Cut(Callback):
        def before_batch(self):
            if self.training and self.epoch==1: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): fit(made(there).add_cb(Cut()))
    with pytest.raises(ValueError, match=f'(?s)checkpoint of another run. The callbacks that change a step, {says}'): fit(made(here))
    assert fit(made(there)).epoch==N-1

def test_data_may_have_moved(small, whole, half, tmp_path):
    "The same files in another place are the same split"
    moved = ends(fit(make(Path(shutil.copytree(small, tmp_path/'elsewhere')), half)))
    assert {k for k in whole if whole[k]!=moved[k]}=={'log'} # which names the files

def told(learn):
    "Fit, and give what is said of it"
    with warnings.catch_warnings(record=True) as said, learn.no_bar(), learn.no_logging():
        warnings.simplefilter('always', ProxyWarning)
        learn.fit_one_cycle(N, 3e-3)
    return [str(o.message) for o in said if 'started with' in str(o.message)]

def test_other_first_weights_are_told(small, whole, half):
    "A script that sets no seed goes on all the same, with the weights and the random numbers of the run"
    learn = make(small, half)
    with torch.no_grad(): learn.model[-1].bias += 1
    said, = told(learn)
    assert 'started with other weights than this learner (another seed, or none)' in said
    assert ends(learn)['model']==whole['model']

def test_other_releases_are_told(small, half, monkeypatch):
    monkeypatch.setattr('proxy_attention.experiment.checkpoint.versions', lambda: dict(versions(), torch='0.1'))
    said, = told(make(small, half))
    assert f'started with torch {versions()["torch"]} and continues with 0.1' in said

def test_another_precision_is_told(small, half, tmp_path):
    "With a GPU, mixed precision is usual, and a run may be continued on a machine without one"
    kept = shutil.copytree(half, tmp_path/'kept')
    said, = told(make(small, half).to_fp16())
    assert 'started with full precision and continues with mixed precision' in said
    with pytest.raises(KeyboardInterrupt): fit(make(small, tmp_path/'mixed', [Cut()]).to_fp16())
    assert 'started with mixed precision and continues with full precision' in told(make(small, tmp_path/'mixed'))[0]
    assert not told(make(small, kept))

def test_a_checkpoint_of_an_earlier_release_goes_on(small, whole, half):
    "It does not say the weight decay"
    state = torch.load(half/'last.pth', weights_only=True)
    assert state['what'].pop('the weight decay') and not state['what'].pop('the weight decay of biases and normalization')
    torch.save(state, half/'last.pth')
    assert ends(fit(make(small, half)))['model']==whole['model']

def test_the_best_by_another_metric_is_no_best(small, half):
    "A loss of 2.3 would never be exceeded by an accuracy"
    before = {o:(half/o).read_bytes() for o in ('last.pth','best.pth')}
    with pytest.raises(ValueError, match="best='valid_loss', but the best weights in .* by 'accuracy': resume with best='accuracy'"):
        fit(make(small, half, best='valid_loss'))
    assert before=={o:(half/o).read_bytes() for o in before}
    fit(make(small, half, best=None))
    assert (half/'best.pth').read_bytes()==before['best.pth'] and read_checkpoint(half/'last.pth')['epoch']==N

def test_the_same_again_is_told_nothing(small, half): assert not told(make(small, half))

def test_a_checkpoint_is_not_written_over(small, half):
    before = (half/'last.pth').read_bytes()
    with pytest.raises(FileExistsError, match='already exists. To resume it, use .*resume=True'):
        fit(make(small, half, resume=False))
    assert (half/'last.pth').read_bytes()==before

def test_callbacks_that_are_gone(small, half, tmp_path):
    with pytest.raises(KeyboardInterrupt): fit(make(small, tmp_path/'run', [Late(), Cut()]))
    learn = make(small, tmp_path/'run')
    with pytest.warns(ProxyWarning, match='does not have: late'), learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(N, 3e-3)

def test_two_processes_at_once(small, half):
    code = "import filelock,sys,time; f = filelock.FileLock(sys.argv[1]); f.acquire(); print('held', flush=True); time.sleep(30)"
    other = subprocess.Popen([sys.executable, '-c', code, half/'.lock'], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline()=='held\n'
    try:
        with pytest.raises(FileExistsError, match='Another process is training with the folder'): fit(make(small, half))
    finally:
        other.kill()
        other.wait()
    fit(make(small, half)) # who is killed lets go

def test_no_permission(small, tmp_path, monkeypatch):
    (tmp_path/'file').write_text('')
    with pytest.raises(OSError, match='The folder for checkpoints, .*cannot be written'): fit(make(small, tmp_path/'file'/'run'))
    own = Path.mkdir
    def mkdir(self, *a, **k):
        if self.name=='locked': raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return own(self, *a, **k)
    monkeypatch.setattr(Path, 'mkdir', mkdir)
    with pytest.raises(PermissionError, match='cannot be written .Permission denied.: give another'):
        fit(make(small, tmp_path/'locked'))

def test_nothing_among_the_images(small, fingerprint):
    before = fingerprint(small)
    with pytest.raises(ValueError, match='nothing is ever written there'): fit(make(small, small/'run'))
    assert fingerprint(small)==before

def test_arguments(small, tmp_path):
    for kw,says in ((dict(folder=3), 'folder=3'), (dict(folder=''), "folder=''"), (dict(folder='x', best=1), 'best=1'),
                    (dict(folder='x', resume='last.pth'), "resume='last.pth'")):
        with pytest.raises(TypeError, match=says): Checkpoint(**kw)
    with pytest.raises(ValueError, match="did you mean 'valid_loss'"): fit(make(small, tmp_path/'run', best='val_loss'))
    with pytest.raises(FileNotFoundError, match='There is no checkpoint'): load_best(make(small), tmp_path/'none')

def test_several_processes_are_refused(small, tmp_path, monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '2')
    with pytest.raises(NotImplementedError, match='supports a single process'): fit(make(small, tmp_path/'run', proxy=False))

@pytest.mark.filterwarnings("ignore:load_learner")
def test_export_leaves_it_usable(small, tmp_path):
    learn = fit(make(small, tmp_path/'run'), 'fit', 2)
    learn.export(tmp_path/'x.pkl')
    again = load_learner(tmp_path/'x.pkl')
    f = next((small/'valid'/'3').iterdir())
    with learn.no_bar(), again.no_bar(): assert torch.equal(learn.predict(f)[2], again.predict(f)[2])

def test_table_shows_all_epochs(small, half):
    learn,rows = make(small, half),[]
    learn.logger = lambda o: rows.append(list(o))
    with learn.no_bar(): learn.fit_one_cycle(N, 3e-3)
    assert [o[0] for o in rows]==list(range(N)) and {len(o) for o in rows}=={len(learn.recorder.metric_names)}

def test_with_a_progress_bar(small, whole, half, capsys):
    learn = make(small, half)
    with warnings.catch_warnings(): warnings.simplefilter('ignore'); learn.fit_one_cycle(N, 3e-3)
    assert f'Resuming fit 1 after 2 of {N} epochs' in capsys.readouterr().out and ends(learn)==whole

@pytest.mark.parametrize('resume', [True,False])
def test_a_run_that_never_began_is_no_run(small, tmp_path, resume):
    "An argument that is refused before the first batch, put right and tried again"
    with pytest.raises(ValueError, match='need 9 epochs'):
        fit(make(small, tmp_path/'run', resume=resume, proxy=dict(steps=[8,'p',1])))
    assert read_checkpoint(tmp_path/'run'/'last.pth')['epoch']==0
    assert len(fit(make(small, tmp_path/'run', resume=resume, proxy=False)).recorder.values)==N

def test_two_fits_in_a_session(small, tmp_path):
    "The second goes on from the first's weights; run again, both are passed over or gone on with"
    epochs = []
    class Trained(Callback):
        def after_train(self): epochs.append(self.epoch)
    def both(*cbs):
        learn = make(small, tmp_path/'run' if cbs else None, [*cbs[1:], Trained], proxy=False)
        fit(learn, 'fit', 2, 1e-3); fit(learn, 'fit_one_cycle', 2, 3e-3)
        return learn
    whole = ends(both())
    with pytest.raises(KeyboardInterrupt): both(1, Cut(1, 1, 2))
    assert read_checkpoint(tmp_path/'run'/'last.pth')['fit']==2
    for trained in ([1],[]): # the epoch that was cut off; nothing
        epochs.clear()
        assert ends(both(1))==whole and epochs==trained

# Callbacks of one's own

class Draws(Callback):
    "Changes a weight by random numbers, from generators that it owns or is given"
    def __init__(self, given): self.given,self.rng,self.gen,self.bag = given,random.Random(0),np.random.default_rng(0),torch.Generator()
    def after_batch(self):
        if not self.training: return
        by = self.given.random()+self.rng.random()+self.gen.random()+float(torch.rand(1, generator=self.bag))
        with torch.no_grad(): self.model[-1].bias[0] += 1e-3*by

def test_generators_of_callbacks_go_on(small, tmp_path):
    again = cut_and_gone_on(small, tmp_path, kw=lambda: dict(proxy=False, cbs=[Draws(random.Random(1))]))
    assert isinstance(again.draws.bag, torch.Generator) and isinstance(again.draws.given, random.Random)

@pytest.mark.parametrize('made', [random.Random, np.random.default_rng, np.random.RandomState,
    lambda o: np.random.Generator(np.random.MT19937(o)), lambda o: torch.Generator().manual_seed(o)])
def test_any_generator_is_stored(made, tmp_path):
    draw = lambda o: torch.rand(3, generator=o).tolist() if isinstance(o, torch.Generator) else o.random()
    gen = made(7)
    draw(gen)
    room._write(tmp_path/'a.pth', dict(version=room._version, o=[gen]))
    assert draw(read_checkpoint(tmp_path/'a.pth')['o'][0])==draw(gen)

class Window(Callback):
    "Keeps its last losses in a way that cannot be stored"
    def before_fit(self): self.last,self.place,self.how = collections.deque(maxlen=3),Path('a'),np.less

class Watching(EarlyStoppingCallback):
    "What fastai's class keeps is found again, whatever it is"
    def __init__(self): super().__init__(patience=99)

def test_what_cannot_be_stored_is_told_once(small, tmp_path):
    learn = make(small, tmp_path/'run', [Window(),Watching()], proxy=False)
    with warnings.catch_warnings(record=True) as said, learn.no_bar(), learn.no_logging():
        warnings.simplefilter('always')
        learn.fit(2)
    said, = [str(o.message) for o in said if o.category is ProxyWarning]
    assert re.search('do not contain Window.last, because only plain data', said), said

class Scales(Callback):
    def __init__(self, by=1.): self.by,self.n = by,0
    def after_batch(self): self.n += 1

def test_another_callback_of_ones_own_is_told(small, tmp_path):
    with pytest.raises(KeyboardInterrupt): fit(make(small, tmp_path/'run', [Scales(), Cut()], proxy=False))
    kept = shutil.copytree(tmp_path/'run', tmp_path/'kept')
    learn = make(small, tmp_path/'run', [Scales(2.)], proxy=False)
    with pytest.warns(ProxyWarning, match='The callback scales .* is another one here .by: 1.0 there, 2.0 here'):
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(N, 3e-3)
    learn = make(small, kept, [Scales()], proxy=False)
    with warnings.catch_warnings(), learn.no_bar(), learn.no_logging():
        warnings.simplefilter('error', ProxyWarning)
        learn.fit_one_cycle(N, 3e-3)

@pytest.mark.parametrize('made,says', [
    (lambda o: dict(cbs=[Prune((.2,.9)[o], start=1, every=1, finish=3)]),
        'callbacks that change a step, prune, amount: 0.2 there, 0.9 here'),
    (lambda o: dict(cbs=[ReduceLROnPlateau(factor=(2,9)[o])]), 'callbacks that change a step, reduce_lr_on_plateau, factor'),
    (lambda o: dict(tfms=[Rotate((10,90)[o])]), 'transforms'),
    (lambda o: dict(net=Leaky((.1,.9)[o])), 'layers of the model, settings')])
def test_settings_that_no_text_shows_are_of_another_run(small, tmp_path, made, says):
    def learn(o, *cut):
        kw = made(o)
        tfms = kw.pop('tfms', [])
        res = make(small, tmp_path/'run', [*kw.pop('cbs', []), *cut], proxy=False, **kw)
        for t in tfms: res.dls.train.after_batch.add(t)
        return res
    with pytest.raises(KeyboardInterrupt): fit(learn(0, Cut()))
    with pytest.raises(ValueError, match=f'(?s)is the checkpoint of another run. The {says}'): fit(learn(1))
    assert fit(learn(0)).epoch==N-1

class Leaky(nn.Module):
    def __init__(self, by):
        super().__init__()
        self.by,self.body,self.calls = by,nn.Sequential(nn.Flatten(), nn.Linear(3*32*32, 10)),0
    def forward(self, x):
        self.calls += 1
        return self.body(x)*self.by

def test_predictions_in_the_middle_of_an_epoch_do_not_change_its_number(small, tmp_path):
    "fastai sets the epoch of the learner to 0 for them, and complete epochs were trained again"
    class Peeks(Callback):
        def after_batch(self):
            if self.training: self.learn.validate()
    learn = make(small, tmp_path/'two', [Peeks()], best=None)
    fit(learn, 'fit', 3, 1e-3)
    assert read_checkpoint(tmp_path/'two'/'last.pth')['epoch']==3
