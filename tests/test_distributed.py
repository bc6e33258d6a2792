"Two processes on fastai's own engine (accelerate, gloo, CPU): one step, one store, the same proxies, the same weights"
import os, socket
from contextlib import ExitStack
import pytest, warm
from fastai.vision.all import *
from fastai.distributed import *
from proxy_attention.all import *
from proxy_attention.attribution.heatmap import HeatmapStore

pytest.importorskip('accelerate')
pytestmark = pytest.mark.limit(120)

def train(path, out, lr, kw):
    "What every process does; its results are left in `out`"
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)
    def broadcast(self, t, rank): # fastai's own goes through CUDA
        t = torch.tensor(t)
        torch.distributed.broadcast(t, rank)
        return t.tolist()
    DistributedDL._broadcast = broadcast
    rank = rank_distrib()
    set_seed(0)
    net = digits_net()
    for o in list(net.modules()):
        for k,m in list(o.named_children()):
            if isinstance(m, nn.BatchNorm2d): setattr(o, k, nn.Identity())
    dls = ImageDataLoaders.from_folder(path, train='train', valid='valid', bs=16, num_workers=kw.pop('workers', 0))
    served = []
    class Served(Callback):
        def before_batch(self):
            if self.training and self.epoch==2: served.extend((self.learn.xb[0].amax((1,2,3))==0).nonzero()[:,0].tolist())
    learn = Learner(dls, net, metrics=accuracy, cbs=[Served(), ProxyAttention(**({} if 'steps' in kw else dict(start=1)), **kw)])
    before = dict(dls.train.__dict__)
    with learn.no_bar() if rank==0 else learn.no_logging():
        with learn.distrib_ctx(cpu=True, sync_bn=False): learn.fit(3, lr)
    pa = learn.proxy_attention
    new = {k for k in dls.train.__dict__.keys()^before.keys() if k!='it' and not k.endswith('__idxs')} # fastai leaves its iterator
    assert not new, new
    assert learn.dls.train is dls.train
    pa.log.to_json(out/f'log{rank}.json')
    pa.store.save(out/f'heat{rank}.npz')
    torch.save(dict(
        weights=learn.model.state_dict(),
        losses=pa.interp.losses.as_subclass(torch.Tensor), known=pa.interp.known,
        served=len(served), steps=len(learn.recorder.losses)), out/f'end{rank}.pt')

def run(path, out, world, lr, kw):
    "`train` in one process or in several; the results of each"
    begin(train, path, out, world, lr, kw)
    return [
        (pd.read_json(out/f'log{r}.json'), HeatmapStore.load(out/f'heat{r}.npz'), torch.load(out/f'end{r}.pt', weights_only=True))
        for r in range(world)]

def begin(f, path, out, world, lr, kw, code=0):
    "`f` in one process or in several, each of which ends with this exit code"
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    env = dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), ACCELERATE_USE_CPU='true')
    if world>1: env |= dict(WORLD_SIZE=str(world))
    with ExitStack() as stack:
        ps = []
        for r in range(world):
            (out/str(r)).mkdir(parents=True)
            ps.append(stack.enter_context(warm.begin(f, path, out, lr, kw, out=out/str(r),
                env=env|(dict(RANK=str(r), LOCAL_RANK=str(r)) if world>1 else {}))))
        for r,p in enumerate(ps):
            p.join(100)
            assert p.exitcode==code, (p.exitcode, (out/str(r)/'stderr').read_text()[-3000:])

def test_two_processes_do_what_one_does(path, tmp_path):
    "Without learning, so that the weights are the same: the same items with the same losses, and the same heat bit for bit"
    (log,store,end), = run(path, tmp_path/'one', 1, 0., dict(share=.4, workers=1))
    for plog,pstore,pend in run(path, tmp_path/'two', 2, 0., dict(share=.4, workers=1)):
        torch.testing.assert_close(pend['losses'], end['losses'], atol=1e-5, rtol=1e-5)
        assert list(pstore)==list(store) and plog.file.tolist()==log.file.tolist()
        assert all(torch.equal(pstore[i], store[i]) for i in store)

def test_two_processes_serve_the_same_proxies_and_stay_together(path, tmp_path):
    a,b = run(path, tmp_path/'two', 2, 1e-2,
        dict(select='all', p=1., fill='zero', rule='max_share', threshold=-1., max_area=1., clear=False, losses='running'))
    assert (a[0].equals(b[0]) and list(a[1])==list(b[1])==sorted(set(a[0].item))
        and len(a[1])>=240 and np.array_equal(a[1].grids, b[1].grids))
    assert all(torch.equal(a[2]['weights'][k], b[2]['weights'][k]) for k in a[2]['weights'])
    # every chosen image of the last epoch was a proxy, on one of the two
    assert a[2]['served']+b[2]['served']==len(a[1]) and a[2]['steps']==24

def each_its_own(path, out, lr, kw):
    "Every process has a schedule and a selection that say something else"
    rank = int(os.environ['RANK'])
    train(path, out, lr, dict(steps=lambda e,n: e==rank, select=lambda losses: range(rank, 200, 2), fill='zero', p=1.))

def test_one_process_decides(path, tmp_path):
    "When, and which items: the first says it for all, whatever the others would have said"
    begin(each_its_own, path, tmp_path, 2, 1e-2, {})
    logs,ends = zip(*((pd.read_json(tmp_path/f'log{r}.json'), torch.load(tmp_path/f'end{r}.pt', weights_only=True)) for r in (0,1)))
    assert logs[0].equals(logs[1]) and set(logs[0].epoch)=={0} and logs[0]['item'].tolist()==list(range(0, 200, 2))
    assert all(torch.equal(ends[0]['weights'][k], ends[1]['weights'][k]) for k in ends[0]['weights'])

def one_fails(path, out, lr, kw):
    "In one process something goes wrong"
    rank,calls = int(os.environ['RANK']),[]
    def broken(*args):
        calls.append(1) # the first one is the proof before the first batch
        if rank==kw['rank'] and len(calls)>(kw['what']=='heat'): raise ValueError('that image is too strange')
        return torch.rand(len(args[0]), 8, 8) if kw['what'] in ('heat','proof') else range(10)
    def when(e, n):
        if rank==kw['rank'] and e: raise ValueError('that image is too strange')
        return e==0
    own = dict(heat=dict(attribution=broken), proof=dict(attribution=broken), selection=dict(select=lambda losses: broken()),
               schedule=dict(steps=when))[kw['what']]
    try: train(path, out, lr, dict(steps=[1,'p',2])|own)
    except Exception as e: (out/f'said{rank}').write_text(str(e))

@pytest.mark.parametrize('what,rank', [('heat',1), ('heat',0), ('proof',1), ('selection',0), ('schedule',0)])
def test_where_one_fails_nobody_waits(path, tmp_path, what, rank):
    "The other one ends with a sentence, and does not hang"
    begin(one_fails, path, tmp_path, 2, 1e-2, dict(what=what, rank=rank))
    said = [(tmp_path/f'said{r}').read_text() for r in (0,1)]
    assert 'too strange' in said[rank] and f'Process {rank} failed (ValueError' in said[1-rank] and 'too strange' in said[1-rank]
