"Logs and runs: what is written of a fit, what is left as it was, and what is read of any folder"
import io, json, os, random, shutil, subprocess, sys, threading, time, warnings
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from datetime import datetime
from PIL import Image
from fastai.vision.all import *
from fastai.test_utils import synth_learner
from sklearn.metrics import classification_report
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util import tensor_util
from torch.utils.tensorboard import SummaryWriter
from proxy_attention.all import *
from proxy_attention.proxy.step import step
from proxy_attention.experiment.logs import show_confusion
from proxy_attention.experiment.runs import Run, Runs, runs_table

class Do(Callback):
    "Do something at an event"
    def __init__(self, at, do, order=0):
        self.do,self.order = do,order
        setattr(self, at, lambda: do(self))

def oracle(folder, **kw): return EventAccumulator(str(folder), size_guidance=dict(scalars=0, images=0, tensors=0)).Reload()
def values(folder, tag): return [o.value for o in oracle(folder).Scalars(tag)]
def alive(): return [o for o in threading.enumerate() if type(o).__name__=='_AsyncWriterThread']
def net(): return nn.Sequential(digits_net(), nn.Dropout(.2))

@pytest.fixture
def fit(path, quiet):
    def f(*cbs, n=3, seed=0, how='fit_one_cycle'):
        set_seed(seed)
        dls = ImageDataLoaders.from_folder(path, train='train', valid='valid', bs=64, num_workers=0, batch_tfms=Flip())
        return quiet(Learner(dls, net(), metrics=accuracy, cbs=list(cbs)), how, n, 3e-3)
    return f

def proxies(**kw): return ProxyAttention(**(dict(steps=[1,'p',1,'p',1], fill='noise') | kw))

# --- what is written

def test_training_is_bit_for_bit_what_it_was(fit, weights, same, tmp_path):
    a = fit(proxies())
    after = torch.rand(3), random.random(), np.random.rand()
    b = fit(proxies(), RunBoard(tmp_path/'log'))
    assert torch.equal(after[0], torch.rand(3)) and after[1:]==(random.random(), np.random.rand())
    assert same(weights(a), weights(b))
    assert a.recorder.values==b.recorder.values and a.recorder.losses==b.recorder.losses and a.recorder.lrs==b.recorder.lrs
    drop = lambda o: o.proxy_attention.history.drop(columns='seconds')
    assert drop(a).equals(drop(b)) and '_with_events' not in b.__dict__ and not alive()

def test_log_says_what_the_recorder_says_and_no_more(fit, tmp_path):
    "`ProxyAttention` and `FetchPredsCallback` look at the model in mid-fit, and leave no points"
    learn = fit(proxies(), FetchPredsCallback(ds_idx=1), RunBoard(tmp_path/'log'))
    log,rec,n = oracle(tmp_path/'log'),learn.recorder,len(learn.dls.train)
    one = lambda tag: [o.value for o in log.Scalars(tag)]
    assert np.allclose(one('train_loss'), torch.stack([o.cpu() for o in rec.losses]), rtol=1e-6)
    assert np.allclose(one('opt/lr'), rec.lrs, rtol=1e-6) and np.allclose(one('opt/mom'), rec.hps['mom'], rtol=1e-6)
    assert np.allclose(list(zip(one('valid_loss'), one('accuracy'))), [o[1:] for o in rec.values], rtol=1e-6)
    assert [o.step for o in log.Scalars('train_loss')]==list(range(1, 3*n+1))
    assert [o.step for o in log.Scalars('accuracy')]==[n,2*n,3*n] and one('epoch')==[0,1,2]
    h = learn.proxy_attention.history
    assert [o.step for o in log.Scalars('proxy/made')]==[n,2*n]
    for k in ('chosen','made','mean_loss','area','seconds'): assert np.allclose(one(f'proxy/{k}'), h[k], rtol=1e-6)
    told = [[o.step for o in of] for of in (log.Images('proxy/images'),log.Scalars('proxy/served'))]
    assert told==[[2*n,3*n]]*2, 'served in the epoch after the step'
    assert one('proxy/served')==[o['served'] for o in learn.proxy_attention.fit_state.record.epochs]
    w,height = Image.open(io.BytesIO(log.Images('proxy/images')[0].encoded_image_string)).size
    assert w>height>100

def test_one_folder_one_file_a_fit(fit, tmp_path):
    fit(proxies(), RunBoard(tmp_path/'log', arch='net', nothing=None))
    assert [o.is_file() for o in (tmp_path/'log').rglob('*')]==[True]
    row = read_runs(tmp_path).iloc[0]
    assert (row.run=='log' and row.arch=='net' and row.bs==64 and row.proxy_fill=='noise' and row.proxy_attribution=='auto'
            and row.opt=='Adam' and 'nothing' not in row)
    assert abs(row.lr_max-3e-3)<1e-6

def test_numbers_of_numpy_stay_numbers(fit, tmp_path, monkeypatch):
    "And a folder may begin with `~`"
    monkeypatch.setenv('HOME', str(tmp_path))
    fit(RunBoard('~/log', n_freeze=np.int64(3), drop=np.float32(.5), wide=np.bool_(True)), n=1)
    row = read_runs(tmp_path).iloc[0]
    assert row.run=='log' and row.n_freeze==3 and row['drop']==.5 and row.wide==1

def test_confusion_matrix_and_report_are_of_the_last_validation_pass(fit, tmp_path):
    learn = fit(RunBoard(tmp_path/'log'), n=1)
    with learn.no_bar(): preds,targs = learn.get_preds()
    told = oracle(tmp_path/'log').Tensors('classification_report/text_summary')[-1]
    report = tensor_util.make_ndarray(told.tensor_proto).item().decode()
    wanted = classification_report(targs, preds.argmax(1), labels=range(10), target_names=list(learn.dls.vocab), zero_division=0)
    assert report==f'```\n{wanted}\n```' and 'weighted avg' in report
    assert len(oracle(tmp_path/'log').Images('confusion_matrix'))==1

def test_confusion_picture_counts(path):
    ax = show_confusion([0,0,1,2], [0,1,1,1], ['a','b','$c'])
    assert [o.get_text() for o in ax.texts]==['1','1','0','0','1','0','0','1','0']
    ax.figure.canvas.draw()
    ax = show_confusion([0,99], [0,0], range(100))
    assert not ax.texts and not len(ax.get_xticks())

def test_letters_that_no_font_has_are_told_once(monkeypatch):
    "Class names in any script: no empty boxes, and not a warning of matplotlib for each letter"
    monkeypatch.setattr('proxy_attention.core._installed', dict)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        ax = show_confusion([0,1], [0,1], ['猫','dog'])
        ax.figure.canvas.draw()
    assert [o.get_text() for o in ax.get_xticklabels()]==[o.get_text() for o in ax.get_yticklabels()]==[r'\u732b','dog']
    assert [o.category for o in said]==[ProxyWarning]

def test_steps_go_on_in_a_second_fit(fit, quiet, tmp_path):
    learn = fit(RunBoard(tmp_path/'log'), n=2)
    quiet(learn, 'fit', 1, 1e-4)
    log,n = oracle(tmp_path/'log'),len(learn.dls.train)
    assert [o.step for o in log.Scalars('train_loss')]==list(range(1, 3*n+1))
    assert [o.value for o in log.Scalars('fit')]==[1,1,2] and [o.value for o in log.Scalars('epoch')]==[0,1,0]
    assert len(list((tmp_path/'log').iterdir()))==2

def test_fine_tune(path, tmp_path, quiet):
    dls = ImageDataLoaders.from_folder(path, train='train', valid='valid', bs=64, num_workers=0)
    learn = vision_learner(dls, 'resnet10t', pretrained=False, metrics=accuracy, cbs=RunBoard(tmp_path/'log'))
    quiet(learn, 'fine_tune', 1)
    assert [o.step for o in oracle(tmp_path/'log').Scalars('accuracy')]==[len(dls.train), 2*len(dls.train)]

def test_nothing_but_a_fit_is_logged(fit, tmp_path):
    board = RunBoard(tmp_path/'log')
    learn = fit(board, n=1)
    def size(): return sum(o.stat().st_size for o in (tmp_path/'log').iterdir())
    before = size()
    with learn.no_bar(), learn.no_logging():
        learn.validate()
        learn.get_preds()
        learn.predict(learn.dls.valid_ds.items[0])
        learn.lr_find(show_plot=False, num_it=5)
        interpret_train(learn)
    assert (size()==before and len(list((tmp_path/'log').iterdir()))==1 and '_with_events' not in learn.__dict__
            and board.writer is None)

def test_early_stop_is_logged_to_its_last_epoch(fit, tmp_path):
    learn = fit(RunBoard(tmp_path/'log'), EarlyStoppingCallback(monitor='accuracy', min_delta=2., patience=1), n=6)
    rows = learn.recorder.values
    assert len(rows)<6 and np.allclose(values(tmp_path/'log', 'accuracy'), [o[-1] for o in rows]) and not alive()
    assert oracle(tmp_path/'log').Images('confusion_matrix')

def broken_off(fit, tmp_path, at, error, order=0):
    board,count = RunBoard(tmp_path/'log'),[0]
    def do(cb):
        count[0] += 1
        if count[0]==2: raise error
    cb = Do(at, do, order)
    seen = []
    keep = Do('before_fit', lambda o: seen.append(o.learn), -5)
    with pytest.raises(type(error)): fit(board, cb, keep, n=3)
    return seen[0],board,cb

@pytest.mark.parametrize('at,error,order', [
    ('before_batch',KeyboardInterrupt(),0), ('after_epoch',ValueError('of another'),95),
    ('before_validate',RuntimeError('there'),0), ('before_epoch',ValueError('early'),0)])
def test_log_is_closed_when_a_fit_is_broken_off(fit, tmp_path, at, error, order, quiet):
    learn,board,cb = broken_off(fit, tmp_path, at, error, order)
    assert not alive() and board.writer is None and '_with_events' not in learn.__dict__
    at = max([o.step for o in oracle(tmp_path/'log').Scalars('train_loss')], default=0)
    assert at==board.done>0
    learn.remove_cb(cb)
    quiet(learn, 'fit', 1, 1e-3)
    assert [o.step for o in oracle(tmp_path/'log').Scalars('accuracy')][-1]==at+len(learn.dls.train)

def test_cancelled_parts_of_a_fit(fit, tmp_path):
    def stop(cb):
        if cb.epoch==0 and cb.iter==2 and cb.training: raise CancelTrainException
        if cb.epoch==1 and not cb.training: raise CancelValidException
    learn = fit(RunBoard(tmp_path/'log'), Do('before_batch', stop), n=3)
    n = len(learn.dls.train)
    log = oracle(tmp_path/'log')
    assert len(log.Scalars('train_loss'))==2+2*n and [o.step for o in log.Scalars('epoch')]==[2, 2+n, 2+2*n] and not alive()

def test_start_in_the_middle_and_resume(fit, tmp_path, quiet):
    "A run that was killed in epoch 2 and is taken up at its start: one line, no point twice"
    class Stop(Callback):
        def before_batch(self):
            if self.epoch==2 and self.iter==2 and self.training: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): fit(RunBoard(tmp_path/'log', arch='net'), Stop(), n=4)
    cut = read_runs(tmp_path).iloc[0]
    assert cut.arch=='net' and cut.n_epoch==4 and abs(cut.lr_max-3e-3)<1e-9, 'what was killed has told its hyperparameters'
    with pytest.raises(FileExistsError, match='log of another run'): quiet(fit(n=1), 'fit', 1, 1e-3, cbs=RunBoard(tmp_path/'log'))
    other = fit(n=1)
    with other.no_bar(), other.no_logging():
        other.fit(4, 1e-3, start_epoch=2, cbs=RunBoard(tmp_path/'log', resume=True, arch='other'))
    assert read_runs(tmp_path).arch[0]=='other' and abs(read_runs(tmp_path).lr_max[0]-1e-3)<1e-9
    n = len(other.dls.train)
    ours = read_runs(tmp_path, per_epoch=True)
    assert ours.epoch.tolist()==[0,1,2,3] and ours.step.tolist()==[n,2*n,3*n,4*n] and set(ours['fit'])=={1}
    assert Runs(tmp_path).scalars.query('tag=="train_loss"').step.tolist()==list(range(1, 4*n+1))
    assert [o.step for o in oracle(tmp_path/'log').Scalars('train_loss')]==list(range(1, 4*n+1)), 'TensorBoard itself agrees'

def test_export_carries_no_log(fit, tmp_path):
    board = RunBoard(tmp_path/'log')
    mid = []
    learn = fit(
        board, Do('after_epoch', lambda cb: mid.append({k:v for k,v in board.__getstate__().items() if k!='learn'}), 95), n=2)
    learn.remove_cb(Do)
    learn.path = tmp_path
    learn.export('model.pkl')
    shutil.rmtree(tmp_path/'log')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        again = load_learner(tmp_path/'model.pkl')
    with again.no_bar(): again.predict(learn.dls.valid_ds.items[0])
    assert not (tmp_path/'log').exists() and again.run_board.folder==str(tmp_path/'log')
    new = RunBoard.__new__(RunBoard)
    new.__setstate__(mid[0]) # as a copy made in mid-fit is
    assert mid[0]['begun'] and not {'writer','found'}&set(mid[0]) and new.writer is None and not new.begun

def test_refusals(fit, path, tmp_path, fingerprint):
    before = fingerprint(path)
    with pytest.raises(ValueError, match='among the images'): fit(RunBoard(path/'train'/'log'), n=1)
    assert fingerprint(path)==before
    (tmp_path/'file').touch()
    with pytest.raises(OSError, match='give another folder'): fit(RunBoard(tmp_path/'file'/'log'), n=1)
    with pytest.raises(ValueError, match='is empty'): RunBoard('')
    assert not alive()

def test_full_disk_costs_the_log_and_not_the_fit(fit, tmp_path, monkeypatch, weights, same):
    plain = fit(n=2)
    write,count = RecordWriter.write,[0]
    def full(self, data):
        count[0] += 1
        if count[0]>10: raise OSError(28, 'No space left on device')
        return write(self, data)
    monkeypatch.setattr(RecordWriter, 'write', full)
    monkeypatch.setattr(threading, 'excepthook', lambda *_: None)
    with pytest.warns(ProxyWarning, match='No space left on device.*continues without it') as said:
        learn = fit(RunBoard(tmp_path/'log'), n=2)
    assert len([o for o in said if issubclass(o.category, ProxyWarning)])==1
    assert same(weights(plain), weights(learn)) and not alive()

def test_any_learner(tmp_path, quiet):
    "No labels, no images, no recorder's validation: what there is is logged"
    learn = quiet(synth_learner(cbs=RunBoard(tmp_path/'a')), 'fit', 2)
    assert (len(values(tmp_path/'a', 'valid_loss'))==2 and 'images' not in oracle(tmp_path/'a').Tags()
            or not oracle(tmp_path/'a').Tags()['images'])
    learn = synth_learner(cbs=RunBoard(tmp_path/'b'))
    learn.remove_cb(Recorder)
    learn.remove_cb(ProgressCallback)
    learn.fit(1)
    assert len(values(tmp_path/'b', 'train_loss'))==len(learn.dls.train)

def test_metric_that_is_no_number(fit, tmp_path):
    def both(preds, targs): return {'a':1.}
    with pytest.warns(ProxyWarning, match='both is a dict and not a number') as said:
        set_seed(0)
        learn = synth_learner(cbs=RunBoard(tmp_path/'log'), metrics=[AccumMetric(both, flatten=False)])
        with learn.no_bar(), learn.no_logging(): learn.fit(2)
    assert len([o for o in said if issubclass(o.category, ProxyWarning)])==1

def test_half_precision_and_train_metrics(path, tmp_path, quiet):
    learn = digits_learner(path, cbs=RunBoard(tmp_path/'log'))
    learn.recorder.train_metrics = True
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        learn.to_fp16()
        quiet(learn, 'fit', 1, 1e-3)
    tags = oracle(tmp_path/'log').Tags()['scalars']
    assert {'train_accuracy','valid_accuracy','valid_loss'}<=set(tags)

# --- what is read

def make(d, name, accs=(.5,.7), **config):
    run = d/name
    run.mkdir(parents=True)
    (run/'config.json').write_text(json.dumps(dict(arch='resnet18', recipe='late', epochs=len(accs), lr=1e-3) | config))
    pd.DataFrame(dict(train_loss=[1.]*len(accs), valid_loss=[1-o for o in accs], accuracy=accs)).rename_axis('epoch').to_csv(
        run/'history.csv')
    return run

def log(folder, n=5, **kw):
    with SummaryWriter(folder, **kw) as w:
        for i in range(n): w.add_scalar('loss', 1/(i+1), i)
    return max(Path(folder).iterdir(), key=lambda o: o.stat().st_mtime_ns)

def test_our_reader_agrees_with_tensorboards(tmp_path):
    rng = np.random.default_rng(0)
    with SummaryWriter(tmp_path/'a') as w:
        for i in range(50):
            for tag in 'xyz': w.add_scalar(tag, rng.normal(), i)
        w.add_scalar('nan', np.nan, 3)
        w.add_histogram('h', rng.normal(size=10), 1); w.add_text('t', 'text')
    ours,theirs = Runs(tmp_path).scalars,oracle(tmp_path/'a')
    assert set(ours.tag)==set(theirs.Tags()['scalars'])
    for tag in 'xyz':
        mine = ours[ours.tag==tag]
        assert (mine.step.tolist()==[o.step for o in theirs.Scalars(tag)]
                and mine.value.tolist()==[o.value for o in theirs.Scalars(tag)])
        assert max(abs(a.timestamp()-o.wall_time) for a,o in zip(mine.when, theirs.Scalars(tag)))<1e-3
        clock = [datetime.fromtimestamp(o.wall_time) for o in theirs.Scalars(tag)]
        assert [f'{o:%Y-%m-%d %H:%M}' for o in mine.when]==[f'{o:%Y-%m-%d %H:%M}' for o in clock]


def test_logs_of_tensorflow_2(tmp_path):
    "It writes scalars and images as tensors, and says so once for each name"
    (tmp_path/'tf').mkdir()
    png = io.BytesIO()
    Image.new('RGB', (4,3), 'red').save(png, 'png')
    with open(tmp_path/'tf'/'events.out.tfevents.1', 'wb') as f:
        w = RecordWriter(f)
        w.write(event_pb2.Event(file_version='brain.Event:2', wall_time=1.).SerializeToString())
        for step in range(3):
            vs = []
            for tag,kind,data in (('acc','scalars',np.float32(step/2)),
                                  ('pic','images',np.array([b'4',b'3',png.getvalue()], dtype=object))):
                v = summary_pb2.Summary.Value(tag=tag, tensor=tensor_util.make_tensor_proto(data))
                if not step: v.metadata.plugin_data.plugin_name = kind
                vs.append(v)
            w.write(event_pb2.Event(step=step, wall_time=2.+step, summary=summary_pb2.Summary(value=vs)).SerializeToString())
    df = read_runs(tmp_path, images=True)
    assert df.acc.tolist()==[1.] and df.pic[0].size==(4,3)
    per = read_runs(tmp_path, per_epoch=True, images=True)
    assert per.step.tolist()==[0,1,2] and per.acc.tolist()==[0,.5,1] and per.pic[1].getpixel((0,0))==(255,0,0)
    assert 'pic' not in read_runs(tmp_path)

def test_real_run_folder(tmp_path):
    "What `train_folder` writes today"
    data = digits(tmp_path/'data', n=100)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        run = train_folder(data, arch='test_resnet', steps='1,p,1', size=32, pretrained=False, out=tmp_path/'runs', workers=0, share=.3,
                           say=lambda o: None)
    row = read_runs(tmp_path/'runs').iloc[0]
    hist = pd.read_csv(run/'history.csv')
    assert (row.run==run.name and row.arch=='test_resnet' and row.steps=='1,p,1' and row.done==2
            and row.accuracy==hist.accuracy.iloc[-1] and row.proxy_steps==1 and row.share==.3)
    assert row.when.strftime('%Y-%m-%d_%H-%M-%S') in run.name
    per = read_runs(tmp_path/'runs', per_epoch=True, images=True)
    assert per.epoch.tolist()==[0,1] and per.proxy_made[0]>0 and pd.isna(per.proxy_made[1])
    assert isinstance(read_runs(run, images=True).proxies[0], Image.Image) and read_runs(run).run[0]==run.name

def test_toml_nested_and_a_log_below_a_run(tmp_path):
    run = make(tmp_path, 'train_2026-01-02_03-04-05')
    (run/'config.json').unlink()
    (run/'config.toml').write_text('[model]\narch = "vit"\nseed = 1\n[proxy]\nrecipe = "late"\narea = 0.2\nseed = 2\n')
    log(run/'board')
    df = read_runs(tmp_path)
    assert (len(df)==1 and df.arch[0]=='vit' and df.area[0]==.2 and df['model.seed'][0]==1 and df['proxy.seed'][0]==2
            and 'vit  ' in runs_table(tmp_path) and 'late' in runs_table(tmp_path)
            and df.loss[0]==np.float32(.2) and df.accuracy[0]==.7)
    assert df.when[0]==pd.Timestamp('2026-01-02 03:04:05')

def test_only_what_is_new_or_has_grown_is_read(tmp_path, monkeypatch):
    a,b = make(tmp_path, 'a'),log(tmp_path/'b')
    runs = Runs(tmp_path)
    seen,read = [],Run.read
    monkeypatch.setattr(Run, 'read', lambda self, f, *o: seen.append(f) or read(self, f, *o))
    assert runs.update()==[] and not seen
    with open(b, 'ab') as f:
        RecordWriter(f).write(event_pb2.Event(
            step=9, wall_time=1., summary=summary_pb2.Summary(value=[summary_pb2.Summary.Value(tag='loss', simple_value=7.)])
        ).SerializeToString())
    own = next(iter(runs.runs[tmp_path/'b'].logs.values()))
    noted = []
    own.note = lambda e, f=own.note: noted.append(e) or f(e)
    assert runs.update()==seen==[b] and len(noted)==1 and runs.final.set_index('run').loss['b']==7.
    c = make(tmp_path, 'c')
    assert set(runs.update())=={c/'config.json', c/'history.csv'} and len(runs)==3
    b.write_bytes(log(tmp_path/'x', n=2).read_bytes()) # shorter than it was: another file
    shutil.rmtree(tmp_path/'x'); shutil.rmtree(a)
    assert runs.update()==[b] and sorted(o.name for o in runs)==['b','c'] and runs.final.set_index('run').accuracy['c']==.7
    assert runs.final.set_index('run').loss['b']==.5 and len(runs.scalars)==2

def broken(tmp_path):
    good = make(tmp_path, 'good')
    cut = log(tmp_path/'cut'); cut.write_bytes(cut.read_bytes()[:-3])
    flip = log(tmp_path/'flip'); o = bytearray(flip.read_bytes()); o[-30] ^= 255; flip.write_bytes(o)
    (tmp_path/'text').mkdir(); (tmp_path/'text'/'events.out.tfevents.1').write_text('hello, I am not a log at all')
    (tmp_path/'empty').mkdir(); (tmp_path/'empty'/'events.out.tfevents.1').touch()
    (make(tmp_path, 'halfjson')/'config.json').write_text('{"arch": "res')
    (make(tmp_path, 'list')/'config.json').write_text('[1]')
    (make(tmp_path, 'emptycsv')/'history.csv').write_text('')
    (make(tmp_path, 'bytes')/'history.csv').write_bytes(os.urandom(300)+b'\xff\xfe')
    (make(tmp_path, 'toml')/'config.toml').write_text('a = = 3')
    d = tmp_path/'folder'/'events.out.tfevents.2'; d.mkdir(parents=True)

def test_broken_files_are_left_out_counted_and_named_once(tmp_path):
    broken(tmp_path)
    with pytest.warns(ProxyWarning) as said: runs = Runs(tmp_path)
    assert len(said)==1
    text = str(said[0].message)
    assert text.startswith('8 files below') and '; …' in text
    assert ({str(f.relative_to(tmp_path)).split('/')[0] for f in runs.broken}
            =={'cut','flip','text','halfjson','list','emptycsv','bytes','toml'})
    df = runs.final.set_index('run')
    assert (df.accuracy['good']==.7 and df.loss['cut']==.25 and 'text' not in df.index
            and df.arch['emptycsv']=='resnet18' and df.accuracy['halfjson']==.7)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert runs.update()==[] # said once
    assert '8 unreadable' in repr(runs) and 'good' in runs._repr_html_()
    (tmp_path/'cut').joinpath(next((tmp_path/'cut').iterdir()).name).unlink()
    runs.update()
    assert len(runs.broken)==7

def times(folder, *when):
    "A log whose values were written at these times"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder/'events.out.tfevents.1', 'wb') as f:
        w = RecordWriter(f)
        for i,t in enumerate(when):
            loss = summary_pb2.Summary(value=[summary_pb2.Summary.Value(tag='loss', simple_value=i)])
            w.write(event_pb2.Event(step=i, wall_time=t, summary=loss).SerializeToString())

def table_with(file, c, v):
    "Put `v` into the second row of a column"
    df = pd.read_csv(file).astype(object)
    df.loc[1,c] = v
    df.to_csv(file, index=False)

odd_toml = """
[model]
arch = [1, ["a", {b = 2}]]
"" = "no name"
"x.y" = 3
big = 123456789012345678901234567890
nothing = nan
most = inf
[fit]
epochs = 1979-05-27
lr = 07:32:00
early = 0001-01-01
when = 1979-05-27T07:32:00Z
run = 1979-05-27T00:32:00-07:00
[[proxy]]
recipe = true
[[proxy]]
recipe = "late\\u001b[31m\\nx"
"""

damages = dict(
    made=(lambda d: table_with(d/'proxy_steps.csv', 'made', 'abc'), r"proxy_steps.csv.*made.*'abc'"),
    made_inf=(lambda d: table_with(d/'proxy_steps.csv', 'made', 'inf'), r'proxy_steps.csv.*made.*inf'),
    made_huge=(lambda d: table_with(d/'proxy_steps.csv', 'made', '1e300'), r"proxy_steps.csv.*made.*'1e\+300'"),
    fit=(lambda d: table_with(d/'proxy_steps.csv', 'fit', 'x'), r"proxy_steps.csv.*fit.*'x'"),
    epoch=(lambda d: table_with(d/'history.csv', 'epoch', 'second'), r"history.csv.*epoch.*'second'"),
    nan_time=(lambda d: times(d, np.nan, np.nan), r'events.*its times.*nan'),
    early=(lambda d: times(d, -1., 5.), r'events.*its times.*-1'),
    huge=(lambda d: times(d, 1e300, np.inf), r'events.*its times.*1e\+300'),
    deep_json=(lambda d: (d/'config.json').write_text('['*100_000+']'*100_000), 'config.json.*nested'),
    deep_dicts=(lambda d: (d/'config.json').write_text('{"a":'*900+'1'+'}'*900), 'config.json.*nested'),
    deep_list=(lambda d: (d/'config.json').write_text('{"a":'+'['*900+']'*900+'}'), 'config.json.*nested'),
    deep_toml=(lambda d: (d/'config.toml').write_text('a = '+'['*5000+']'*5000), 'config.toml.*nested'),
    text=(lambda d: (d/'config.toml').write_bytes(b'a = "\xff"'), 'config.toml'))

@pytest.mark.parametrize('name', damages)
@pytest.mark.parametrize('alone', [False,True])
def test_one_damaged_run_does_not_hide_the_others(tmp_path, name, alone):
    do,why = damages[name]
    good,bad = make(tmp_path, 'good'),make(tmp_path, 'bad')
    for d in (good,bad):
        pd.DataFrame(dict(fit=[0,0], epoch=[0,1], chosen=[9,9], made=[8,7])).to_csv(d/'proxy_steps.csv', index=False)
    do(bad)
    if alone: # nothing else is left of it
        for f in bad.glob('*.*'):
            if not re.search(why.split('.')[0], f.name): f.unlink()
    with pytest.warns(ProxyWarning, match=why) as said: runs = Runs(tmp_path)
    assert len(said)==1
    df = runs.final.set_index('run')
    assert sorted(df.index)==['bad','good'] and df.accuracy['good']==.7 and df.proxies_made['good']==15
    assert re.search(why, df.problem['bad']) and pd.isna(df.problem['good'])
    text = runs.text()
    assert max(map(len, text.splitlines()[:3]))<=100 and re.search('(?m)^Incomplete: bad ', text)
    assert {'good','bad'}<={o.split()[0] for o in text.splitlines()}
    per = runs.per_epoch
    assert per[per.run=='good'].epoch.tolist()==[0,1] and per[per.run=='good'].proxy_made.tolist()==[8,7]
    rows = json.loads(runs_table_of(tmp_path))
    assert {o['run'] for o in rows}=={'good','bad'}
    for o in (repr(runs), runs._repr_html_()): assert 'good' in o and 'bad' in o
    assert len(runs.table(sort='when'))==2 and len(runs.scalars)==sum(len(log.rows) for o in runs for log in o.logs.values())

def runs_table_of(folder):
    with pytest.warns(ProxyWarning): return runs_table(folder, as_json=True)

def test_what_is_whole_of_a_damaged_table_counts(tmp_path):
    bad = make(tmp_path, 'bad')
    pd.DataFrame(dict(fit=[0,0,0], epoch=[0,1,2], chosen=[9,9,9], made=[8,'abc',3])).to_csv(bad/'proxy_steps.csv', index=False)
    with pytest.warns(ProxyWarning): row = read_runs(tmp_path).iloc[0]
    assert (row.proxies_made,row.proxy_steps,row.accuracy,row.done)==(11,3,.7,2)

def test_counts_that_are_yes_or_no(tmp_path):
    make(tmp_path, 'good')
    d = make(tmp_path, 'flags')
    pd.DataFrame(dict(epoch=[False,True], accuracy=[.5,.6])).to_csv(d/'history.csv', index=False)
    assert read_runs(tmp_path, per_epoch=True).epoch.tolist()==[0,1,0,1] and read_runs(tmp_path).accuracy.tolist()==[.7,.6]

def test_settings_of_odd_types_are_shown(tmp_path):
    make(tmp_path, 'good')
    odd = make(tmp_path, 'odd')
    (odd/'config.json').unlink()
    (odd/'config.toml').write_text(odd_toml)
    runs = Runs(tmp_path)
    df = runs.final.set_index('run')
    assert df.accuracy.tolist()==[.7,.7] and df.arch['good']=='resnet18' and df.arch['odd']==[1,['a',{'b':2}]]
    assert df.big['odd']==123456789012345678901234567890
    assert {o['run'] for o in json.loads(runs_table(tmp_path, as_json=True))}=={'good','odd'}
    for text in (runs.text(), runs.text(columns=list(runs.final)), repr(runs)): assert '\x1b' not in text and 'good' in text
    runs._repr_html_()
    for c in runs.final: runs.table(sort=c), runs.table(sort=f'-{c}')

@pytest.mark.parametrize('name', ['train_0001-01-01_00-00-00','train_9999-12-31_23-59-59','train_2026-02-31_00-00-00'])
def test_names_that_look_like_a_time_of_no_calendar(tmp_path, name):
    make(tmp_path, 'train_2026-01-02_03-04-05')
    make(tmp_path, name)
    runs = Runs(tmp_path)
    assert len(runs.final)==2 and name[:15] in runs.text() and len(json.loads(runs_table(tmp_path, as_json=True)))==2

def test_epochs_in_parts_of_another_program(tmp_path):
    "Some log `epoch` 0.5: it stays what it is"
    make(tmp_path, 'good')
    with SummaryWriter(tmp_path/'hf') as w:
        for i in range(4): w.add_scalar('epoch', i/2, i); w.add_scalar('loss', 1/(i+1), i)
    per = read_runs(tmp_path, per_epoch=True)
    assert per[per.run=='hf'].epoch.tolist()==[0,.5,1,1.5] and per[per.run=='good'].epoch.tolist()==[0,1]

clocks = """
import os, sys, time, json
os.environ['TZ'] = 'Europe/Berlin'
time.tzset()
import pandas as pd
from proxy_attention.experiment.runs import Runs
runs = Runs(sys.argv[1])
print(json.dumps([[o.strftime('%Y-%m-%d %H:%M') for o in runs.scalars.when], runs.scalars.when.diff().dt.total_seconds().tolist()[1:],
                  [o.strftime('%Y-%m-%d %H:%M') for o in runs.final.when], runs.final.run.tolist()]))
"""

def test_times_across_a_change_of_clocks(tmp_path):
    "In Berlin the clocks went back on 2025-10-26 at 01:00 UTC, and forward on 2026-03-29 at 01:00 UTC"
    at = [pd.Timestamp(o, tz='UTC').timestamp() for o in (
        '2025-07-01 12:00','2025-10-26 00:30','2025-10-26 01:30','2026-01-01 12:00','2026-03-29 00:30','2026-03-29 01:30')]
    times(tmp_path/'all', *at)
    times(tmp_path/'b_first', at[1]+600) # by the clock on the wall later than the second
    times(tmp_path/'a_second', at[2])
    res = subprocess.run([sys.executable, '-c', clocks, str(tmp_path)], capture_output=True, text=True)
    assert not res.returncode, res.stderr[-2000:]
    local,apart,began,order = json.loads(res.stdout.splitlines()[-1])
    assert local[:6]==['2025-07-01 14:00','2025-10-26 02:30','2025-10-26 02:30','2026-01-01 13:00','2026-03-29 01:30','2026-03-29 03:30']
    assert apart[:5]==[b-a for a,b in zip(at, at[1:])]
    assert order==['all','b_first','a_second'] and began==['2025-07-01 14:00','2025-10-26 02:40','2025-10-26 02:30']

def test_no_permission(tmp_path, monkeypatch):
    f = log(tmp_path/'a'); make(tmp_path, 'b')
    import builtins
    opened = io.open
    def no(o, *args, **kw):
        if isinstance(o, (str,bytes,os.PathLike)) and os.fsdecode(o)==str(f):
            raise PermissionError(13, 'Permission denied', str(f))
        return opened(o, *args, **kw)
    monkeypatch.setattr(io, 'open', no); monkeypatch.setattr(builtins, 'open', no)
    with pytest.warns(ProxyWarning, match=r'a/events.*Permission denied'): runs = Runs(tmp_path)
    assert [o.name for o in runs]==['b']

def test_nothing_there(tmp_path):
    assert read_runs(tmp_path).empty and read_runs(tmp_path, per_epoch=True).empty and len(Runs(tmp_path))==0
    assert (runs_table(tmp_path)==f'No run in {tmp_path}.' and json.loads(runs_table(tmp_path, as_json=True))==[]
            and 'No run' in Runs(tmp_path)._repr_html_())
    with pytest.raises(FileNotFoundError, match='There is no folder'): Runs(tmp_path/'no')
    (tmp_path/'f').touch()
    with pytest.raises(NotADirectoryError, match='is a file'): Runs(tmp_path/'f')

writer = """
import sys, time
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter
w = EventFileWriter(sys.argv[1])
for i in range(100_000):
    loss = Summary.Value(tag='loss', simple_value=i)
    w.add_event(Event(step=i, wall_time=1., summary=Summary(value=[loss])))
    w.flush()
    time.sleep(.001)
    if not i: print('on', flush=True)
"""

def test_read_while_written_and_after_a_kill(tmp_path):
    p = subprocess.Popen([sys.executable, '-c', writer, str(tmp_path/'live')], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        p.stdout.readline()
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', ProxyWarning) # the end of a record may not be there yet
            runs,seen = Runs(tmp_path),[]
            for _ in range(20):
                runs.update()
                seen.append(len(runs.scalars))
                time.sleep(.02)
    finally:
        p.kill()
        p.wait()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', ProxyWarning)
        runs.update()
        assert seen==sorted(seen) and seen[-1]>seen[0]
        assert runs.scalars.step.tolist()==list(range(len(runs.scalars))) and runs.scalars.equals(Runs(tmp_path).scalars)

def test_many_open_logs_need_no_open_files(tmp_path):
    one = log(tmp_path/'l0')
    for i in range(1,60): (tmp_path/f'l{i}').mkdir(); shutil.copy(one, tmp_path/f'l{i}'/one.name)
    before = len(os.listdir('/proc/self/fd'))
    runs = Runs(tmp_path)
    assert len(runs)==60 and len(os.listdir('/proc/self/fd'))<before+5

def test_table_is_readable_in_100_columns(tmp_path):
    for i in range(3):
        make(tmp_path, f'train_2026-01-0{i+1}_10-00-00', accs=(.5,.6+.1*i), arch='convnext_xxlarge.clip_laion2b_soup_ft_in12k')
    for sub in ('a very long folder name indeed'*3, 'short'):
        with SummaryWriter(tmp_path/sub) as w:
            for i in range(15): w.add_scalar(f'a_metric_with_a_long_name_{i}', i/7, 1)
    out = runs_table(tmp_path)
    lines = out.splitlines()
    assert max(map(len, lines[:-1]))<=100 and lines[-1].startswith('Left out: ') and 'a_metric_with_a_long_name_14' in lines[-1]
    for i in range(3): assert f'train_2026-01-0{i+1}_10-00-00' in out
    assert '0.8' in out and 'late' in out and len(lines)==7

def test_sort_columns_and_json(tmp_path):
    for i,o in enumerate((.9,.7,.8)): make(tmp_path, f'r{i}', accs=(.1,o), recipe=['late','none',None][i], note='<b>&$')
    order = lambda **kw: [o.split()[0] for o in runs_table(tmp_path, **kw).splitlines()[1:]]
    assert (order(sort='accuracy')==['r1','r2','r0'] and order(sort='-accuracy')==['r0','r2','r1']
            and order(sort='recipe')==['r0','r1','r2'])
    assert (runs_table(tmp_path, sort='accuracy', columns='run,accuracy').splitlines()[:2]==['run  accuracy','r1        0.7']
            or runs_table(tmp_path, sort='accuracy', columns=['run','accuracy']).splitlines()[1].split()==['r1','0.7'])
    for bad in (dict(sort='acuracy'), dict(columns='run,acuracy')):
        with pytest.raises(ValueError, match="did you mean 'accuracy'"): runs_table(tmp_path, **bad)
    rows = json.loads(runs_table(tmp_path, as_json=True, sort='-accuracy'))
    assert ([o['accuracy'] for o in rows]==[.9,.8,.7] and rows[1]['recipe'] is None
            and rows[0]['lr']==1e-3 and rows[0]['epochs']==2)
    assert '<b>' not in Runs(tmp_path)._repr_html_().split('<tbody>')[1] and '<svg' in Runs(tmp_path)._repr_html_()

def test_names_that_a_run_has_itself(tmp_path):
    "Settings, metrics and pictures may be called as the table's own columns: `run`, `when`, `done`"
    taken = dict(run='mine', when=3, done='yes', proxy_steps=7)
    a = make(tmp_path, 'train_2026-01-02_03-04-05', **taken)
    Image.new('RGB', (2,2)).save(a/'run.png')
    with SummaryWriter(tmp_path/'other') as w:
        for tag in ('run','when','done'): w.add_scalar(tag, 9., 1)
    runs = Runs(tmp_path, images=True)
    df = runs.final.set_index('run')
    assert list(df.index)==[a.name,'other'] and df.when.iloc[0]==pd.Timestamp('2026-01-02 03:04:05') and df.done.iloc[0]==2
    assert ({k:df[f'{k}_setting'].iloc[0] for k in taken}==taken and df.run_last['other']==df.done_last['other']==9
            and isinstance(df.run_image.iloc[0], Image.Image))
    for o in (runs_table(tmp_path), repr(runs), runs._repr_html_()): assert a.name in o and 'other' in o

@pytest.mark.parametrize('columns', ['run, lr', ' run,lr ,', ['run','lr'], 'run,lr,run'])
def test_columns_may_have_spaces_and_none_are_the_usual(tmp_path, columns):
    make(tmp_path, 'a')
    assert runs_table(tmp_path, columns=columns).splitlines()==['run     lr','a    0.001']
    assert list(json.loads(runs_table(tmp_path, columns=columns, as_json=True))[0])==['run','lr']
    for none in ('', ' ', ',', []):
        for as_json in (False,True):
            assert runs_table(tmp_path, columns=none, as_json=as_json)==runs_table(tmp_path, as_json=as_json)

def test_a_run_that_was_stopped_shows_how_far_it_came(tmp_path):
    make(tmp_path, 'a', accs=(.1,.2), epochs=10)
    assert '2 of 10' in runs_table(tmp_path)

def test_reading_changes_nothing(tmp_path, fingerprint):
    broken(tmp_path)
    before = fingerprint(tmp_path)
    with pytest.warns(ProxyWarning): runs = Runs(tmp_path, images=True)
    runs.final
    runs.per_epoch
    runs.scalars
    repr(runs)
    runs._repr_html_()
    assert fingerprint(tmp_path)==before
