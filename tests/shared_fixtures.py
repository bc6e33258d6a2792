"The fixtures; `conftest` loads this module in the processes that run tests, and not in the one that only hands them out"
import hashlib, warnings
import pytest, torch
with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    from fastai.vision.all import *
    from proxy_attention.all import *

torch.set_num_threads(1)

@pytest.fixture(autouse=True)
def no_pictures():
    yield
    plt.close('all')

@pytest.fixture(scope='session')
def path(tmp_path_factory):
    "A folder of digits with a shortcut, shared and never written to"
    return digits(tmp_path_factory.mktemp('data')/'digits', n=320)

@pytest.fixture(scope='session')
def few(tmp_path_factory):
    "64 digits to train on, 16 to validate: for what does not depend on their number"
    return digits(tmp_path_factory.mktemp('few')/'digits', n=80)

@pytest.fixture(scope='session')
def trained():
    "A learner that has learned to read the patch"
    learn = digits_learner()
    fit_quietly(learn, 'fit', 2, 1e-3)
    return learn

def fit_quietly(learn, how='fit_one_cycle', *args, **kwargs):
    with learn.no_bar(), learn.no_logging(): getattr(learn, how)(*args, **kwargs)
    return learn

@pytest.fixture
def quiet(): return fit_quietly

@pytest.fixture
def weights(): return lambda learn: {k:v.detach().clone() for k,v in learn.model.state_dict().items()}

@pytest.fixture
def same(): return lambda a,b: a.keys()==b.keys() and all(torch.equal(a[k], b[k]) for k in a)

@pytest.fixture
def fingerprint():
    "Names, contents, sizes and times of all files below a folder"
    def f(path):
        h = hashlib.sha256()
        for o in sorted(Path(path).rglob('*')):
            st = o.stat()
            h.update(f'{o.relative_to(path)} {st.st_size} {st.st_mtime_ns} {st.st_mode}'.encode())
            if o.is_file(): h.update(o.read_bytes())
        return h.hexdigest()
    return f

def small_net(c_in=3, n_out=4):
    "Two convolutions and a head"
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(c_in, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, stride=2), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, n_out)).eval()
