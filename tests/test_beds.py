"Test beds: what is planted is exactly what is claimed, the same seed gives the same files, and nothing is left half made"
import gzip, importlib.util, io, itertools, zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from hypothesis import given as drawn, settings, strategies as st
from fastai.vision.all import *
from torchvision.datasets.mnist import read_sn3_pascalvincent_tensor
from proxy_attention.all import *
from proxy_attention.data.beds import beds, read_folder, read_idx
from proxy_attention.data.digits import bed_learner, digit_images, fc_net, write_bed
from proxy_attention.data.beds import deal, draw_groups

small = dict(n_train=120, n_test=60)
parts = ('train','valid','plain','aligned','flipped')
every = pytest.mark.parametrize('name', beds)

@lru_cache
def made(name, **kwargs): return (lambda path: (path, pd.read_csv(path/'about.csv')))(beds[name](**small|kwargs))

def pixels(path, files): return np.stack([np.asarray(Image.open(path/f)) for f in files])
def stems(about, *parts): return set(about[about.part.isin(parts)].file.map(lambda f: Path(f).stem))
def files(path): return {f.relative_to(path).as_posix():f.read_bytes() for f in path.rglob('*') if f.is_file()}

# the draw

@drawn(st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_places_are_dealt_in_proportion(data):
    sizes = np.array(data.draw(st.lists(st.integers(0,40), min_size=1, max_size=9).filter(sum)))
    n = data.draw(st.integers(0, int(sizes.sum())))
    places,quota = deal(n, sizes), n*sizes/sizes.sum()
    assert places.sum()==n and (abs(places-quota)<1).all() and (places<=sizes).all()

@drawn(st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_nothing_is_drawn_twice(data):
    groups = np.array(data.draw(st.lists(st.integers(0,4), min_size=1, max_size=60)))
    a = data.draw(st.integers(0, len(groups)))
    b = data.draw(st.integers(0, len(groups)-a))
    with np.errstate(all='raise'): res = draw_groups(groups, dict(a=a, b=b), np.random.default_rng(0))
    assert [len(res[k]) for k in 'ab']==[a,b] and len(set(res['a'])|set(res['b']))==a+b
    for k,n,pool in (('a',a,groups),('b',b,np.delete(groups, res['a']))): # each in proportion to what was there
        for g in set(pool): assert abs((groups[res[k]]==g).sum()-n*(pool==g).mean())<1

# what is planted

@every
@pytest.mark.parametrize('conflict', [0.,.1])
def test_shares_are_exact(name, conflict):
    path,about = made(name, conflict=conflict)
    assert about.part.value_counts().to_dict()==dict(train=120, valid=30, plain=60, aligned=60, flipped=60)
    assert about.groupby('part').conflict.sum().to_dict()==dict(
        train=round(conflict*120), valid=round(conflict*30), plain=0, aligned=0, flipped=60)
    assert (sorted(about.file)==sorted(f for f in files(path) if f.endswith('.png'))
            and {o.name for o in path.iterdir()}=={*parts,'about.csv'})
    assert (about.file==about.apply(lambda o: f'{o.part}/{o.label}/{Path(o.file).name}', axis=1)).all()
    boxes = about[['top','left','height','width']].isna()
    assert (boxes.all(axis=1)==about.cue.isna()).all() and (boxes.any(axis=1)==boxes.all(axis=1)).all()
    said = about.dropna(subset='cue')
    assert ((said.cue!=said.label)==said.conflict).all()
    none = about[about.cue.isna() & (about.part!='plain')]
    if name=='one_colour': assert ((none.label==0)==none.conflict).all() # no square says the other class
    else: assert not len(none)

@every
def test_lies_are_spread_over_the_classes(name):
    about = made(name, conflict=.1)[1].query('part=="train"')
    assert (about.groupby('label').conflict.sum()-.1*about.label.value_counts()).abs().lt(1).all()

@every
def test_classes_are_stratified(name):
    about = made(name)[1]
    share = about.groupby('part').label.value_counts(normalize=True).unstack()
    assert (share.max()-share.min()).lt(.05).all()
    if name!='dominoes': assert share.loc['train'].max()-share.loc['train'].min()<.05

@every
def test_test_images_are_the_same_and_in_no_other_part(name):
    path,about = made(name, conflict=.1)
    assert not stems(about, 'train')&stems(about, 'valid') and not stems(about, 'train','valid')&stems(about, 'plain')
    test = about[about.part=='plain'].file.tolist()
    imgs = {k:pixels(path, [f.replace('plain', k, 1) for f in test]) for k in ('plain','aligned','flipped')}
    box = {k:regions(path, [path/f.replace('plain', k, 1) for f in test])['shortcut'] for k in imgs}
    assert not box['plain'].any()
    for a,b in itertools.combinations(imgs, 2):
        differ = (imgs[a]!=imgs[b]).any(-1)
        assert not (differ & ~(box[a]|box[b])).any() and differ.any((1,2)).mean()>=(.4 if name=='one_colour' else 1)
    if name!='dominoes': assert ((imgs['plain']!=imgs['aligned']).any(-1)==box['aligned']).all() # no grey of a swatch is black
    all_files = about[about.part.isin(['train','valid','plain'])].file
    rest = np.where(regions(path, [path/f for f in all_files])['shortcut'][...,None], 0, pixels(path, all_files))
    assert len({o.tobytes() for o in rest})==len(rest) # no picture stands twice, under any name

@pytest.mark.parametrize('name,decode', [
    ('two_colours', {(230,25,75):0, (0,130,200):1}),
    ('one_colour', {(255,0,0):0}),
    ('swatches', {(255-25*o,)*3:o for o in range(10)})])
def test_cues_stand_in_the_pixels(name, decode):
    path,about = made(name, conflict=.1)
    for o in about.dropna(subset='cue').itertuples():
        img,(y,x,h,w) = pixels(path, [o.file])[0], map(int, (o.top, o.left, o.height, o.width))
        assert h==w==round(len(img)/7) and y in (0,32-h) and x in (0,32-w)
        assert (img[y:y+h, x:x+w]==img[y,x]).all() and decode[tuple(img[y,x].tolist())]==o.cue

def test_corners():
    where = lambda **kw: made('two_colours', **kw)[1].groupby(['top','left']).ngroups
    assert where()==1 and where(corner='random')==4 and made('swatches', corner='fixed')[1].groupby(['top','left']).ngroups==1
    assert [*map(tuple, made('two_colours', corner=lambda n: np.full(n, 2))[1][['top','left']]
                 .dropna().drop_duplicates().values)]==[(27,0)]
    path,about = made('two_colours', corner='random')
    two = [about[about.part==k].sort_values('file')[['top','left']].values for k in ('aligned','flipped')]
    assert (two[0]==two[1]).all()

def test_dominoes_digits_are_in_one_part_each():
    path,about = made('dominoes', conflict=.1)
    known = {o.tobytes():(i,y) for i,(o,y) in enumerate(zip(*digit_images()))}
    seen = {k:set() for k in parts}
    for o in about.itertuples():
        top,picture = np.split(pixels(path, [o.file])[0][...,0], 2)
        assert known[picture.tobytes()][1] in ((2,3,4,5),(6,7,8,9))[o.label]
        if o.part=='plain': assert not top.any()
        else:
            i,y = known[top.tobytes()]
            assert y==o.cue
            seen[o.part].add(i)
    test = seen['aligned']|seen['flipped']
    assert not seen['train']&seen['valid'] and not seen['train']&test and not seen['valid']&test

# seeds

@every
def test_a_seed_repeats_and_others_differ(name):
    one = files(made(name, conflict=.1)[0])
    two = files(beds[name](**small, conflict=.1))
    other = files(beds[name](**small, conflict=.1, seed=1))
    assert one==two and other.keys()!=one.keys()

def test_parts_do_not_depend_on_the_shortcut():
    a,b,c = (stems(made(n, **kw)[1], 'train') for n,kw in (
        ('two_colours',{}), ('two_colours', dict(conflict=.1, corner='random')), ('one_colour', dict(conflict=.1))))
    assert a==b==c and a!=stems(made('two_colours', seed=1)[1], 'train')

def test_global_random_state_is_left_alone():
    np.random.seed(0)
    a = np.random.rand(3)
    np.random.seed(0)
    two_colours(**small)
    assert (np.random.rand(3)==a).all()

# images of one's own

@pytest.fixture(scope='module')
def mnist():
    imgs,labels = digit_images(28, 20)
    return imgs[:600],labels[:600]

def test_own_images(mnist, tmp_path):
    path = two_colours(tmp_path/'a'/'b', *mnist, **small, conflict=.1)
    about = pd.read_csv(path/'about.csv')
    assert path==tmp_path/'a'/'b' and set(about.height.dropna())=={4}
    for f in about[about.part=='plain'].file:
        i = int(Path(f).stem)
        assert (pixels(path, [f])[0]==mnist[0][i][...,None]).all() and about.set_index('file').label[f]==int(mnist[1][i]>=5)
    assert [o.name for o in tmp_path.iterdir()]==['a'] and [o.name for o in (tmp_path/'a').iterdir()]==['b'] # no rests of the writing

def test_dominoes_of_pictures(mnist):
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (300,32,40,3), dtype=np.uint8)
    kinds = np.array(['truck','auto'])[rng.integers(2, size=300)]
    path = dominoes(None, *mnist, pictures, kinds, n_train=80, n_test=40)
    about = pd.read_csv(path/'about.csv')
    assert set(about.cue.dropna())==set(about.label)=={'auto','truck'}
    aligned = about[about.part=='aligned']
    imgs = pixels(path, aligned.file)
    assert imgs.shape==(40,64,40,3) and all((o[32:]==pictures[int(Path(f).stem)]).all() for o,f in zip(imgs, aligned.file))
    tops = {np.pad(o, ((2,2),(6,6))).tobytes():y for o,y in zip(*mnist)}
    assert [tops[o[:32,:,0].tobytes()] for o in imgs]==[int(y=='truck') for y in aligned.label]
    where = regions(path, [path/aligned.file.iloc[0]], over=-1)
    assert (where['digit'][0,32:].all() and where['shortcut'][0,:32].all()
            and not where['digit'][0,:32].any() and not where['rest'].any())

def test_labels_that_miss_some_digits(mnist):
    imgs,labels = (o[np.isin(mnist[1], (2,7,9))] for o in mnist)
    path = swatches(None, imgs, labels, n_train=80, n_test=40)
    about = pd.read_csv(path/'about.csv')
    assert set(about.cue.dropna())=={2,7,9} and set(about[about.part=='flipped'].query('label==2').cue)=={7,9}

def test_no_shortcut(mnist):
    path = no_shortcut(None, *mnist, n_train=120, n_test=60)
    about = pd.read_csv(path/'about.csv')
    assert (set(about.part)=={'train','valid','plain'} and about.cue.isna().all() and not about.conflict.any()
            and list(test_sets(path))==['plain'])
    assert stems(about, 'train')==stems(pd.read_csv(two_colours(None, *mnist, **small)/'about.csv'), 'train')

def test_learners_see_beds_and_digits_alike(path, same, weights):
    assert {k:o.name for k,o in test_sets(path).items()}==dict(plain='plain', aligned='valid', flipped='flipped')
    a,b = digits_learner(path, 3), bed_learner(path, seed=3, bs=16)
    assert same(weights(a), weights(b)) and a.dls.bs==b.dls.bs==16 and torch.equal(a.dls.one_batch()[1], b.dls.one_batch()[1])
    learn = bed_learner(made('dominoes')[0], partial(fc_net, hidden=7))
    assert (learn.model(learn.dls.one_batch()[0]).shape==(64,2)
            and learn.model[-3].in_features==64*16*8 and learn.model[-1].in_features==7)
    assert bed_learner(made('swatches')[0], lambda n: nn.Sequential(nn.Flatten(), nn.Linear(3*32*32, n))).dls.c==10

# faults

@pytest.mark.parametrize('how,error,words', [
    (lambda m: two_colours(None, m[0]), ValueError, 'and their labels, or neither'),
    (lambda m: two_colours(None, m[0], m[1][:-1]), ValueError, 'There are 600 images, and the labels are an array of shape .599,.'),
    (lambda m: two_colours(None, m[0]/255, m[1]), TypeError, r'from 0 to 255 \(uint8\), but they are float64'),
    (lambda m: two_colours(None, m[0][0], m[1][:28]), ValueError, 'should be an array of'),
    (lambda m: swatches(None, m[0], m[1]+1), ValueError, 'digits from 0 to 9, but one of them is 10'),
    (lambda m: two_colours(None, *m, n_train=500), ValueError,
     'There are 600 images, which are too few for 500 in train, 125 in valid, 400 in test'),
    (lambda m: two_colours(None, m[0][m[1]<5], m[1][m[1]<5], n_train=80, n_test=40), ValueError, "All images are of one class, '0'"),
    (lambda m: two_colours(None, m[0][:0], m[1][:0]), ValueError, 'There are no images'),
    (lambda m: swatches(None, *m, n_train=20, n_test=40), ValueError, 'None of the 5 images of valid has the class'),
    (lambda m: one_colour(conflict=1.2), ValueError, 'conflict=1.2 should be a number from 0 to 1'),
    (lambda m: one_colour(conflict='1 %'), TypeError, "conflict='1 %' should be a number"),
    (lambda m: one_colour(conflict=float('nan')), ValueError, 'conflict=nan'),
    (lambda m: one_colour(**small, conflict=.001), ValueError, 'conflict=0.001 of 120 training images is less than one'),
    (lambda m: one_colour(n_train=80.5), TypeError, 'n_train=80.5 should be a whole number'),
    (lambda m: one_colour(n_test=0), ValueError, 'n_test=0 should be 2 or more'),
    (lambda m: one_colour(seed=-1), ValueError, 'seed=-1 should be 0 or more'),
    (lambda m: dominoes(seed=None), TypeError, 'seed=None should be a whole number'),
    (lambda m: two_colours(corner='randon'), ValueError, "No corner is called 'randon', did you mean 'random'"),
    (lambda m: dominoes(None, *m, *m, **small), ValueError, 'have two classes, but they have 10'),
    (lambda m: dominoes(None, m[0], None), ValueError, 'Give digit images and their labels'),
    (lambda m: dominoes(None, m[0][m[1]>0], m[1][m[1]>0], **small), ValueError, 'There are 0 digits 0'),
    (lambda m: dominoes(None, None, None, m[0][:,:20], m[1]%2, **small), ValueError,
     r'digits \(32×32\) should not be larger than the pictures \(20×28\)'),
    (lambda m: dominoes(n_train=1500), ValueError, 'too few for 1500 in train'),
])
def test_what_cannot_work(mnist, how, error, words):
    with pytest.raises(error, match=words): how(mnist)

def test_nothing_is_written_over_or_left_half_made(tmp_path, mnist):
    (tmp_path/'full').mkdir()
    (tmp_path/'full'/'mine.txt').write_text('mine')
    for o in ('full','full/mine.txt'):
        with pytest.raises(FileExistsError, match='no file is overwritten'): two_colours(tmp_path/o, **small)
    assert (tmp_path/'full'/'mine.txt').read_text()=='mine'
    (tmp_path/'empty').mkdir()
    assert (two_colours(tmp_path/'empty', **small)/'about.csv').is_file()
    def rows():
        yield 'train', 0, '0', mnist[0][0], None, False, None
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): write_bed(tmp_path/'cut', rows())
    with pytest.raises(ValueError): two_colours(tmp_path/'cut', n_train=5000)
    assert sorted(o.name for o in tmp_path.iterdir())==['empty','full']

def test_regions_of_other_folders(tmp_path):
    Image.new('RGB', (9,9)).save(tmp_path/'a.png')
    with pytest.raises(FileNotFoundError): regions(tmp_path, [tmp_path/'a.png'])

# files

def idx(a):
    return (bytes([0,0,{'u':8,'i':12,'f':13}[a.dtype.kind],a.ndim]) + np.array(a.shape, '>u4').tobytes()
            + a.astype(a.dtype.newbyteorder('>')).tobytes())

@pytest.mark.parametrize('a', [
    np.arange(24, dtype=np.uint8).reshape(2,3,4), np.array([3,1,2], np.uint8), np.array([[-70000,1]], np.int32),
    np.array([.5,-2], np.float32), np.zeros((0,28,28), np.uint8)])
def test_idx_files(tmp_path, a):
    (tmp_path/'a').write_bytes(idx(a))
    (tmp_path/'b').write_bytes(gzip.compress(idx(a)))
    for o in 'ab':
        got = read_idx(tmp_path/o)
        assert got.dtype==a.dtype and got.shape==a.shape and (got==a).all() and got.flags.writeable
    if a.size: assert (read_sn3_pascalvincent_tensor(str(tmp_path/'a')).numpy()==a).all()

def test_idx_files_that_are_broken(tmp_path):
    good = idx(np.arange(24, dtype=np.uint8).reshape(2,3,4))
    for raw,words in ((b'','not in the IDX format'), (b'PK\3\4aaaa','not in the IDX format'), (b'\0\0\x99\3','not in the IDX format'),
                      (good[:9],'shorter or longer'), (good[:-1],'shorter or longer'), (good+b'a','shorter or longer'),
                      (gzip.compress(good)[:-12],'cannot be unpacked'), (b'\x1f\x8b junk','cannot be unpacked'),
                      (gzip.compress(good[:-3]),'shorter or longer')):
        (tmp_path/'f').write_bytes(raw)
        with pytest.raises(ValueError, match=words): read_idx(tmp_path/'f')

def test_folders_as_arrays(tmp_path):
    path = made('swatches')[0]/'plain'
    imgs,labels = read_folder(path)
    fs = sorted(path.rglob('*.png'))
    assert (imgs==pixels(path, fs)).all() and labels.tolist()==[f.parent.name for f in fs]
    assert set(read_folder(path, ['7','2'])[1])=={'2','7'}
    with pytest.raises(ValueError, match='There is no image'): read_folder(tmp_path)
    for i,c in enumerate('ab'):
        (tmp_path/c).mkdir()
        Image.new('L', (9,9+i)).save(tmp_path/c/'a.png')
    with pytest.raises(ValueError, match=r'the same size: .*a.png has 9×9 pixels .height × width., .*a.png has 10×9'):
        read_folder(tmp_path)
    with pytest.raises(ValueError, match="no class 'c'"): read_folder(tmp_path, ['c'])

# the benchmark's

@pytest.fixture
def bed_data():
    spec = importlib.util.spec_from_file_location('bed_data', Path(__file__).parent.parent/'benchmarks'/'bed_data.py')
    spec.loader.exec_module(m := importlib.util.module_from_spec(spec))
    return m

def test_beds_of_the_benchmarks(bed_data, mnist, tmp_path):
    (data := tmp_path/'data').mkdir()
    for k,a in zip(('images_idx3','labels_idx1'), mnist):
        (data/f'mnist_10k_{k}.gz').write_bytes(gzip.compress(idx(a.astype(np.uint8))))
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(data/'cifar10_jpg.zip', 'w') as z:
        for part,c,i in itertools.product(('train','test'), ('automobile','cat','truck'), range(60)):
            Image.fromarray(rng.integers(0, 256, (32,32,3), dtype=np.uint8)).save(f := io.BytesIO(), 'JPEG')
            z.writestr(f'{part}/{c}/{i:04}.jpg', f.getvalue())
    make = lambda name,**kw: bed_data.make(name, data, tmp_path/'out', **dict(n_train=64, n_test=32)|kw)
    for name in set(bed_data.names)-{'mnist','mnist_1k','mnist_halves','cars','cifar','cifar10'}:
        assert test_sets(make(name)).keys()=={'plain','aligned','flipped'}
    for name in ('mnist_halves','cars'):
        assert test_sets(make(name)).keys()=={'plain'} and len(ls := [o.name for o in (make(name)/'train').iterdir()])==2, ls
    assert not np.asarray(Image.open(next((make('cars')/'train').rglob('*.png'))))[:32].any()
    about = lambda name: pd.read_csv(make(name)/'about.csv').query('part=="train"')
    assert (about('random_corner').conflict.sum()==1 and about('random_corner').groupby(['top','left']).ngroups==4
            and about('dominoes_95').conflict.sum()==3 and set(about('dominoes_100').label)=={'automobile','truck'})
    before = files(tmp_path/'out')
    make('decoy')
    assert files(tmp_path/'out')==before
    with ThreadPoolExecutor(3) as ex: same = set(ex.map(lambda _: make('masktune', seed=7), range(3)))
    assert (len(same)==1 and len(pd.read_csv(same.pop()/'about.csv'))==64+16+3*32
            and not [o for o in (tmp_path/'out').iterdir() if o.name.startswith('.')])
    with pytest.raises(ValueError, match="No bed is called 'masktun', did you mean 'masktune"): make('masktun')

def test_the_accuracy_is_found_among_the_metrics(few):
    from fastai.vision.all import F1Score
    learn = digits_learner(few)
    alone = accuracy_on(learn, few/'valid')
    learn.metrics = [F1Score(average='macro'), *learn.metrics]
    assert accuracy_on(learn, few/'valid')==alone!=learn.validate()[1]
    learn.metrics = []
    with pytest.raises(ValueError, match='is no accuracy'): accuracy_on(learn, few/'valid')
