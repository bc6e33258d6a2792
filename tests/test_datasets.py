"Tables, folds, subsets, splits that are kept, and known data sets on folders of exactly their layout"
import os, subprocess, sys, tarfile, textwrap, urllib.error
from concurrent.futures import ProcessPoolExecutor
from unittest.mock import Mock
import fastai.data.external, fastdownload.core
import pytest
from fastai.vision.all import *
from proxy_attention.all import *
from proxy_attention.core import given
from proxy_attention.data.datasets import known_data, known_table
from proxy_attention.data.datasets import known_sets

def put(top, *names):
    "Small images, each of its own colour"
    for i,o in enumerate(names):
        f = Path(top)/o
        f.parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (8,8), (i%256, len(names)%256, 7)).save(f, format='PNG' if f.suffix.lower()=='.png' else 'JPEG')
    return Path(top)

def table(top, text, name='labels.csv', **kwargs):
    (Path(top)/name).write_text(text, **kwargs)
    return Path(top)/name

@pytest.fixture
def pets(tmp_path):
    "Six cats and four dogs in one folder, beside a table of them"
    names = [*(f'cat{i}' for i in range(6)), *(f'dog{i}' for i in range(4))]
    put(tmp_path/'images', *(f'{o}.jpg' for o in names))
    table(tmp_path, 'file,label,valid\n'+''.join(f'images/{o}.jpg,{o[:3]},{o[3]=="1"}\n' for o in names))
    return tmp_path

# tables

def test_table_reads_columns_by_name_and_number(pets):
    a,b = ImageTable(pets/'labels.csv'), ImageTable(pets/'labels.csv', 'file', 'label')
    assert a.df.equals(b.df) and len(a)==10 and a.path==(pets/'images').resolve()
    assert (a.df.label==a.df.file.map(lambda f: f.name[:3])).all()

def test_table_keeps_a_given_split(pets):
    df = ImageTable(pets/'labels.csv', valid_col='valid').df
    assert sorted(df.file[df.part=='valid'].map(lambda f: f.name))==['cat1.jpg','dog1.jpg']

@pytest.mark.parametrize('train,valid', [('train','valid'), ('0','1'), ('Training','VAL'), ('no',' yes ')])
def test_words_for_parts(pets, train, valid):
    csv = table(pets, (pets/'labels.csv').read_text().replace('False',train).replace('True',valid))
    assert ImageTable(csv, valid_col=2).df.part.value_counts().to_dict()==dict(train=8, valid=2)

def test_rows_for_testing_are_left_alone(pets):
    csv = table(pets, (pets/'labels.csv').read_text().replace('cat5.jpg,cat,False','cat5.jpg,cat,test'))
    assert len(ImageTable(csv, valid_col='valid'))==9

def test_labels_are_text(tmp_path):
    put(tmp_path, *(f'{c}{i}.png' for c in 'abc' for i in range(3)))
    csv = table(tmp_path, 'f,l\n'+''.join(f'{c}{i}.png,{l}\n' for c,l in zip('abc',('007','NA','1.0')) for i in range(3)))
    assert set(ImageTable(csv).df.label)=={'007','NA','1.0'}

def test_table_of_excel(pets):
    "A byte order mark, and semicolons"
    text = (pets/'labels.csv').read_text()
    assert len(ImageTable(table(pets, text, encoding='utf-8-sig'), 'file'))==10
    csv = table(pets, text.replace(',',';'))
    assert len(ImageTable(csv, 'file', 'label', sep=';'))==10
    with pytest.raises(ValueError, match='pass `sep'): ImageTable(csv, 'file', 'label', sep=',')
    for o in ';\t': # as the command line opens it, which has no word for what parts the columns
        assert len(open_images(table(pets, text.replace(',',o), encoding='utf-8-sig'), fn_col='file', valid_col='valid'))==10
    with pytest.raises(ValueError, match='not encoded in UTF-8 .*save it as "CSV UTF-8"'):
        ImageTable(table(pets, text.replace('dog','chée'), encoding='latin-1'))

def test_absolute_names_and_names_without_end(pets, tmp_path):
    text = (pets/'labels.csv').read_text()
    assert len(ImageTable(table(pets, text.replace('images/', f'{pets}/images/')), path=pets/'elsewhere'))==10
    csv = table(pets, text.replace('.jpg',''))
    with pytest.raises(FileNotFoundError, match="10 of 10 files.*pass `suffix='.jpg'`"): ImageTable(csv)
    assert len(ImageTable(csv, suffix='.jpg'))==10

@pytest.mark.parametrize('change,kwargs,words', [
    (lambda t: t, dict(label_col='lable'), "no column 'lable', did you mean 'label'"),
    (lambda t: t, dict(fn_col=9), 'has no column 9'),
    (lambda t: t, dict(fn_col=True), 'has no column True'),
    (lambda t: t, dict(fn_col='label', label_col='label'), 'both the files and the labels'),
    (lambda t: t, dict(valid_col='label'), "'cat' in row 2 .*does not name a part of the split"),
    (lambda t: t.replace('cat0.jpg,cat','cat0.jpg, '), {}, "1 rows have an empty cell in the column 'label', the first is row 2"),
    (lambda t: t.replace('images/dog3.jpg',''), {}, "empty cell in the column 'file', the first is row 11"),
    (lambda t: '\n'+t.replace('images/dog3.jpg','').replace('images/dog1','\n  \nimages/dog1'), {}, "the first is row 14"),
    (lambda t: t.replace('images/dog1.jpg','"images/\ndog1.jpg"').replace('images/dog3.jpg',''), {}, "the first is row 11"),
    (lambda t: t+'""\n', {}, "empty cell in the column 'file', the first is row 12"),
    (lambda t: t+'images/./cat0.jpg,dog,False\n', {}, "is listed in row 2 as 'cat' and again in row 12 .* as 'dog'"),
    (lambda t: t.partition('\n')[2], {}, 'The first line of .* names an image, images/cat0.jpg: write a line with the names'),
    (lambda t: t.replace('cat0.jpg','cat00.jpg'), {}, '1 of 10 files .* do not exist.*give the folder of the files as `path`'),
    (lambda t: t.replace('True','False'), dict(valid_col='valid'), "are in the part 'train': there is nothing to validate on"),
    (lambda t: t.replace('False','True'), dict(valid_col='valid'), "are in the part 'valid': there is nothing to train on"),
    (lambda t: t.replace('cat,False','cat,test').replace('cat,True','cat,test'), dict(valid_col='valid'), "of one class, 'dog'"),
    (lambda t: t.replace('True','test').replace('False','test'), dict(valid_col='valid'), 'every row is for testing'),
    (lambda t: t.replace('dog,False','dog,True'), dict(valid_col='valid'), "class 'dog' is in validation but not in training"),
    (lambda t: '', {}, 'cannot be read as a table'),
    (lambda t: 'file,label\n', {}, 'has no rows'),
    (lambda t: t+'"', {}, 'cannot be read as a table'),
    (lambda t: t, dict(valid_pct=1), 'should be a fraction between 0 and 1'),
    (lambda t: t, dict(subset=0), 'subset=0 should be a fraction'),
    (lambda t: t, dict(n_per_class=1), 'n_per_class=1 should be 2 or more'),
])
def test_tables_that_cannot_work(pets, change, kwargs, words):
    csv = table(pets, change((pets/'labels.csv').read_text()))
    with pytest.raises((ValueError,OSError), match=words): ImageTable(csv, **kwargs)

def test_tables_that_are_none(pets):
    with pytest.raises(FileNotFoundError, match='There is no CSV file'): ImageTable(pets/'none.csv')
    with pytest.raises(IsADirectoryError, match='use `ImageFolder`'): ImageTable(pets)
    (pets/'latin.csv').write_bytes('file,label\nä.png,b\n'.encode('latin-1'))
    with pytest.raises(ValueError, match='not encoded in UTF-8'): ImageTable(pets/'latin.csv')
    with pytest.raises(TypeError, match="n_per_class='3' should be a whole number"):
        ImageTable(pets/'labels.csv', n_per_class='3')
    (pets/'bytes.csv').write_bytes(bytes(range(256)))
    with pytest.raises(ValueError): ImageTable(pets/'bytes.csv')

def test_table_trains_and_is_never_written_to(path, tmp_path, quiet, fingerprint):
    df = pd.read_csv(path/'about.csv').query('part!="flipped" and part!="plain"')
    df.to_csv(tmp_path/'t.csv', index=False)
    before = fingerprint(path)
    images = ImageTable(tmp_path/'t.csv', 'file', 'label', path, 'part')
    dls = images.dataloaders(bs=16, num_workers=0)
    given = df.set_index('file').part
    assert [given[f] for f in dls.train_ds.items.file.map(
        lambda f: (images.path/f).relative_to(path.resolve()).as_posix())]==['train']*len(dls.train_ds)
    learn = Learner(dls, digits_net(), cbs=ProxyAttention(select='all', start=1, p=1.))
    quiet(learn, 'fit', 2, 1e-3)
    assert learn.proxy_attention.history.made.sum()>0 and fingerprint(path)==before

# folds, subsets, balance

def test_folds_hold_each_image_once_and_are_stratified(path):
    images = ImageFolder(path/'train').folds(4)
    whole = images.df.copy()
    seen = pd.concat([o.file[o.part=='valid'] for o in (images.fold(i).df for i in range(4))])
    assert sorted(seen)==sorted(images.df.file)
    n = pd.crosstab(images.df.fold, images.df.label)
    assert (n.max()-n.min()<=1).all()
    assert images.df.equals(whole), 'asking for a fold changed the set'
    assert (ImageFolder(path/'train').folds(4).df.equals(whole)
            and not ImageFolder(path/'train', seed=1).folds(4).df.fold.equals(whole.fold))

def test_folds_take_a_given_validation_part_in(path):
    images = ImageFolder(path).folds(3)
    assert len(images)==320 and (images.fold(0).df.part=='valid').sum() in (106,107)

def test_folds_that_cannot_be(pets):
    images = ImageTable(pets/'labels.csv')
    with pytest.raises(ValueError, match='There are no folds yet'): images.fold(0)
    with pytest.raises(ValueError, match="class 'dog' has 4 images, too few for 5 folds"): images.folds(5)
    with pytest.raises(ValueError, match='k=1 should be 2 or more'): images.folds(1)
    with pytest.raises(TypeError, match='k=2.5 should be a whole number'): images.folds(2.5)
    images.folds(4)
    for i in (4,-1,True,'0'):
        with pytest.raises(ValueError, match='there are 4, from 0 to 3'): images.fold(i)
    assert images.folds(2).df.fold.nunique()==2

def test_leaving_out_keeps_a_fold(path):
    one = ImageFolder(path/'train').folds(3).fold(1)
    before,gone = one.df, one.df.file[::9]
    one.leave_out(gone)
    assert one.df.equals(before[~before.file.isin(gone)].reset_index(drop=True))

@pytest.mark.parametrize('small,large', [(dict(subset=.2),dict(subset=.5)), (dict(n_per_class=4),dict(n_per_class=9))])
@pytest.mark.parametrize('at', ['.','train'])
def test_subsets_are_nested_and_stratified(path, small, large, at):
    a,b,whole = (ImageFolder(path/at, **o) for o in (small,large,{}))
    assert set(a.df.file)<set(b.df.file)<set(whole.df.file)
    assert a.df.equals(ImageFolder(path/at, **small).df) and set(a.df.file)!=set(ImageFolder(path/at, seed=7, **small).df.file)
    want = whole.balance().set_index('label').n
    parts = whole.df.groupby(['label','part'] if at=='.' else 'label').size()
    for o,kw in ((a,small),(b,large)):
        n = o.balance().set_index('label').n
        if 'subset' in kw: assert ((n-want*kw['subset']).abs()<=1).all()
        else: assert n.to_dict()==parts.clip(upper=kw['n_per_class']).groupby('label').sum().to_dict()
        assert set(o.df.label)==set(whole.df.label) and (o.df.part.value_counts()>=10).all()

def test_a_subset_leaves_each_class_two(pets):
    with pytest.warns(ProxyWarning, match="subset=0.01 leaves 4 images, 2 of the class 'cat': too few to train on"):
        assert ImageTable(pets/'labels.csv', subset=.01).balance().n.tolist()==[2,2]
    assert len(ImageTable(pets/'labels.csv', subset=1.))==10

def test_balance_counts_and_warns(tmp_path):
    put(tmp_path, *(f'many/{i}.png' for i in range(21)), *(f'few/{i}.png' for i in range(2)))
    with pytest.warns(ProxyWarning, match="class 'many' has 21 images, 'few' has 2"): df = ImageFolder(tmp_path).balance()
    assert (df.label.tolist()==['many','few'] and df.n.tolist()==[21,2] and (df.train+df.valid==df.n).all()
            and df.share.sum()==pytest.approx(1))
    (tmp_path/'many'/'0.png').unlink()
    ImageFolder(tmp_path).balance() # exactly ten times is not more: a warning would be an error here

# kept, and taken up again

def test_a_kept_split_is_the_same_again(path, tmp_path):
    shutil.copytree(path/'train', tmp_path/'a')
    one = ImageFolder(tmp_path/'a', seed=3, subset=.5).folds(3).fold(2)
    f = one.save(tmp_path/'run')
    assert f.name=='folds.csv' and list(pd.read_csv(f).columns)==['file','label','part','fold']
    (tmp_path/'a').rename(tmp_path/'moved')
    with pytest.warns(ProxyWarning, match='images of .* are not in .*folds.csv, so they are left out'):
        again = ImageFolder(tmp_path/'moved').load(tmp_path/'run')
    strip = lambda o: o.df.assign(file=o._names()).values.tolist()
    assert (strip(again)==strip(one)
            and [o.name for o in again.dataloaders(bs=4, num_workers=0).valid_ds.items.file.map(Path)]
                ==one.df.file[one.df.part=='valid'].map(lambda f: f.name).tolist())
    assert strip(again.fold(0))==strip(ImageFolder(tmp_path/'moved', seed=3, subset=.5).folds(3).fold(0))

def test_a_kept_split_without_folds(pets):
    one = ImageTable(pets/'labels.csv', seed=5)
    one.save(pets/'run')
    again = ImageTable(pets/'labels.csv', seed=6).load(pets/'run'/'folds.csv')
    assert again.df.equals(one.df) and 'fold' not in again.df

def test_a_new_image_does_not_change_a_kept_split(pets):
    one = ImageFolder(put(pets/'d', *(f'{c}/{i}.png' for c in 'ab' for i in range(9))))
    one.save(pets/'run')
    put(pets/'d', 'a/00.png')
    with pytest.warns(ProxyWarning, match='1 images of'): again = ImageFolder(pets/'d').load(pets/'run')
    assert again.df.equals(one.df)

def test_the_order_is_kept_too(tmp_path):
    "Items are known by their number: another order would give each the heatmap of another"
    d = put(tmp_path/'d', *each('{}/{}.png', 'ab'))
    one = ImageTable(table(tmp_path, 'f,l\n'+''.join(f'{o},{o[0]}\n' for o in reversed(each('{}/{}.png', 'ab')))), path=d)
    one.save(tmp_path/'run')
    images = ImageFolder(d)
    assert images.df.file.tolist()==one.df.file.tolist()[::-1] and images.load(tmp_path/'run').df.equals(one.df)

@pytest.mark.parametrize('spoil,words', [
    (lambda d,f: (d/'a'/'3.png').unlink(), '1 of 18 images .* are not among those .* a/3.png'),
    (lambda d,f: (d/'a').rename(d/'c'), 'are not among those'),
    (lambda d,f: f.write_text(f.read_text().replace('a/3.png,a','a/3.png,b')), "a different label in .*a/3.png: 'a' now and 'b' there"),
    (lambda d,f: f.write_text(f.read_text().replace('part','parts')), 'is not a split that `save` wrote'),
    (lambda d,f: f.write_text(f.read_text().replace('valid','test')), 'is not a split'),
    (lambda d,f: f.write_text(f.read_text().replace('valid','train')), 'is not a split'),
    (lambda d,f: f.write_text(f.read_text().replace('b/8.png','b/7.png')), 'is not a split'),
    (lambda d,f: f.write_text(f.read_text().replace('train,','train,x')), 'is not a split'),
    (lambda d,f: f.write_bytes(f.read_bytes()[:0]), 'cannot be read as a table'),
    (lambda d,f: f.write_bytes(b'\x93NUMPY\x00\xff'), 'not encoded in UTF-8'),
    (lambda d,f: f.unlink(), 'There is no CSV file'),
], ids=['image gone','class renamed','label','columns','part','no valid','twice','fold','empty','binary','no file'])
def test_kept_splits_that_do_not_fit(tmp_path, spoil, words):
    d = put(tmp_path/'d', *(f'{c}/{i}.png' for c in 'ab' for i in range(9)))
    f = ImageFolder(d).save(tmp_path/'run')
    spoil(d, f)
    if words.startswith('There'): f.parent.rmdir()
    images = ImageFolder(d)
    before = images.df.copy()
    with pytest.raises((ValueError,OSError), match=words): images.load(f.parent if f.parent.exists() else f)
    assert images.df.equals(before), 'a split that does not fit changed the set'

def test_a_split_is_never_written_among_the_images(pets, fingerprint):
    images,before = ImageTable(pets/'labels.csv'), fingerprint(pets)
    with pytest.raises(ValueError, match='among the images: nothing is ever written there'): images.save(pets/'images'/'run')
    assert fingerprint(pets)==before

def test_full_disk_and_no_permission_leave_the_last_split(pets, monkeypatch):
    images = ImageTable(pets/'labels.csv')
    f = images.save(pets/'run')
    good = f.read_bytes()
    def full(*_): raise OSError(28, 'No space left on device')
    with monkeypatch.context() as m:
        m.setattr(os, 'fsync', full)
        with pytest.raises(OSError, match='No space left'): images.folds(2).save(pets/'run')
    assert f.read_bytes()==good and os.listdir(pets/'run')==['folds.csv']
    (pets/'file').write_text('')
    with pytest.raises(OSError): images.save(pets/'file')

def test_killed_while_saving_leaves_the_last_split(pets):
    f = ImageTable(pets/'labels.csv', seed=1).save(pets/'run')
    good = f.read_bytes()
    code = f"""
        import os
        from proxy_attention.data.images import ImageTable
        os.fsync = lambda _: os.kill(os.getpid(), 9)
        ImageTable({str(pets/'labels.csv')!r}, seed=2).save({str(pets/'run')!r})"""
    assert subprocess.run([sys.executable, '-W', 'ignore', '-c', textwrap.dedent(code)]).returncode==-9
    assert f.read_bytes()==good

def _save(args): return ImageTable(args[0], seed=args[1]).save(args[2]).read_bytes()

def test_two_processes_save_at_once(pets):
    with ProcessPoolExecutor(2, mp_context=__import__('multiprocessing').get_context('fork')) as ex:
        list(ex.map(_save, [(pets/'labels.csv', i, pets/'run') for i in range(8)]))
    wrote = {_save((pets/'labels.csv', i, pets/f'alone{i}')) for i in range(8)}
    assert (pets/'run'/'folds.csv').read_bytes() in wrote and os.listdir(pets/'run')==['folds.csv']

def test_relabelling_never_merges(pets):
    images = ImageTable(pets/'labels.csv')
    with pytest.raises(ValueError, match="classes 'cat' and 'dog' would both be called 'pet'"): images.relabel(lambda o: 'pet')
    assert set(images.df.label)=={'cat','dog'} and set(images.relabel(dict(cat='felis')).df.label)=={'felis','dog'}

# known data sets

def each(pattern, classes, n=4): return [pattern.format(c, i) for c in classes for i in range(n)]
def written(files):
    return lambda d: [
        (d/k).parent.mkdir(parents=True, exist_ok=True)
        or (d/k).write_text(v, encoding='utf-8-sig' if k.endswith('.lst') else 'utf-8')
        for k,v in files.items()]
def nothing(d): pass

# name: the images, more files, label of each image that is used -> part if the split is given
_nette,_woof = ('n01440764','n03028079'), ('n02086240','n02115641')
_breeds = ('n02085620-Chihuahua','n02099267-flat-coated_retriever')
_thu = ('200-n000008-Airedale','1043-n000001-Shiba_Dog')
_birds = ('001.Black_footed_Albatross','200.Common_Yellowthroat')
layouts = dict(
    imagenette=(each('train/{}/{}.JPEG', _nette)+each('val/{}/v{}.JPEG', _nette, 2), nothing, {'tench','church'}, (8,4)),
    imagewoof=(each('train/{}/{}.JPEG', _woof)+each('val/{}/v{}.JPEG', _woof, 2), nothing, {'Shih-Tzu','dingo'}, (8,4)),
    cifar10=(
        each('train/{}/{}.png', ('airplane','truck'))+each('test/{}/t{}.png', ('airplane','truck')),
        written({'labels.txt':'airplane\ntruck\n'}), {'airplane','truck'}, 8),
    cifar100=(
        each('train/{}/{}.png', ('aquatic_mammals/beaver','fish/ray'))+each('test/{}/t{}.png', ('aquatic_mammals/beaver',)),
        nothing, {'beaver','ray'}, 8),
    pets=(
        each('images/{}_{}.jpg', ('Abyssinian','english_cocker_spaniel')),
        written({'annotations/list.txt':'', 'images/Abyssinian_1.mat':'x'}), {'Abyssinian','english_cocker_spaniel'}, 8),
    caltech101=(each('{}/image_{}.jpg', ('accordion','airplanes','BACKGROUND_Google')), nothing, {'accordion','airplanes'}, 8),
    mnist=(each('training/{}/{}.png', '01')+each('testing/{}/t{}.png', '01'), nothing, {'0','1'}, 8),
    mnist_tiny=(
        each('train/{}/{}.png', '37')+each('valid/{}/v{}.png', '37')+['test/1.png'],
        written({'labels.csv':'name,label\n', 'models/a.txt':''}), {'3','7'}, (8,8)),
    dogs_cats=(
        each('train/{}/{}.jpg', ('cats','dogs'))+each('valid/{}/v{}.jpg', ('cats','dogs'))
            +each('sample/train/{}/{}.jpg', ('cats','dogs'))+['test1/1.jpg'],
        nothing, {'cats','dogs'}, (8,8)),
    cub=(
        each('images/{}/{}.jpg', _birds),
        written({
            'images.txt':''.join(f'{i} {b}/{j}.jpg\n' for i,(b,j) in enumerate((b,j) for b in _birds for j in range(4))),
            'train_test_split.txt':''.join(f'{i} {int(i%4<3)}\n' for i in range(8))}),
        {'Black_footed_Albatross','Common_Yellowthroat'}, 6),
    flowers=(
        [f'jpg/image_{i:05}.jpg' for i in range(12)],
        written({f'{part}.txt':''.join(f'jpg/image_{i:05}.jpg {i%2+76}\n' for i in at)
                 for part,at in dict(train=range(4), valid=range(4,8), test=range(8,12)).items()}),
        {'76','77'}, (4,4)),
    food=(
        each('images/{}/{}.jpg', ('apple_pie','waffles')),
        written({'train.txt':''.join(f'{c}/{i}\n' for c in ('apple_pie','waffles') for i in range(3)),
                 'test.txt':'apple_pie/3\nwaffles/3\n'}),
        {'apple_pie','waffles'}, 6),
    asl_alphabet=(
        each('asl_alphabet_train/asl_alphabet_train/{0}/{0}{1}.jpg', ('A','B','del','nothing','space'))
            +['asl_alphabet_test/asl_alphabet_test/A_test.jpg'],
        nothing, {'A','B','del','nothing','space'}, 20),
    stanford_dogs=(
        each('Images/{}/n_{}.jpg', _breeds),
        written({f'Annotation/{b}/n_{i}':'<annotation>' for b in _breeds for i in range(4)}),
        {'Chihuahua','flat-coated_retriever'}, 8),
    tsinghua_dogs=(
        each('low-resolution/{}/n{}.jpg', _thu),
        written({f'Low-Annotations/{b}/n{i}.jpg.xml':'' for b in _thu for i in range(4)}),
        {'Airedale','Shiba_Dog'}, 8),
    places365=(
        each('places365_standard/train/{}/{}.jpg', ('airfield','apartment_building-outdoor'))
            +each('places365_standard/val/{}/v{}.jpg', ('airfield','apartment_building-outdoor')),
        written({'places365_standard/train.txt':''}), {'airfield','apartment_building-outdoor'}, (8,8)),
    places_256=(
        each('data_256/{}/{}.jpg', ('a/airfield','a/apartment_building/outdoor','b/bar','b/balcony/outdoor'))
            +['val_256/Places365_val_1.jpg'],
        nothing, {'airfield','apartment_building-outdoor','bar','balcony-outdoor'}, 16),
    plant_village=(
        each('PlantVillage/{}/{}.JPG', ('Pepper__bell___Bacterial_spot','Tomato_healthy'))
            +each('plantvillage/PlantVillage/{}/{}.JPG', ('Pepper__bell___Bacterial_spot','Tomato_healthy')),
        nothing, {'Pepper__bell___Bacterial_spot','Tomato_healthy'}, 8),
    plant_disease=(
        each('New Plant Diseases Dataset(Augmented)/New Plant Diseases Dataset(Augmented)/train/{}/{}.JPG',
             ('Apple___Apple_scab','Corn_(maize)___healthy'))
            +each('New Plant Diseases Dataset(Augmented)/New Plant Diseases Dataset(Augmented)/valid/{}/v{}.JPG',
                  ('Apple___Apple_scab','Corn_(maize)___healthy'))
            +['test/test/AppleScab1.JPG'],
        nothing, {'Apple___Apple_scab','Corn_(maize)___healthy'}, (8,8)),
    caltech256=(
        each('256_ObjectCategories/{}/{}.jpg', ('001.ak47','056.dog','257.clutter'))
            +['256_ObjectCategories/056.dog/greg/vision309/1.jpg'],
        nothing, {'ak47','dog','clutter'}, 12),
    tiny_imagenet=(
        each('tiny-imagenet-200/train/{0}/images/{0}_{1}.JPEG', ('n02012849','n03126707','n02123394'))
            +[f'tiny-imagenet-200/val/images/val_{i}.JPEG' for i in range(3)]+['tiny-imagenet-200/test/images/test_0.JPEG'],
        written({
            'tiny-imagenet-200/val/val_annotations.txt':
                'val_0.JPEG\tn02123394\t0\t32\t44\t62\n'
                'val_1.JPEG\tn03126707\t0\t0\t1\t1\n'
                'val_2.JPEG\tn02012849\t0\t0\t1\t1\n',
            'tiny-imagenet-200/words.txt':
                'n00001740\tentity\n'
                'n02012849\tcrane\n'
                'n02123394\tPersian cat\n'
                'n03126707\tcrane, hoist\n',
            'tiny-imagenet-200/train/n02012849/n02012849_boxes.txt':''}),
        {'crane (n02012849)','Persian cat','crane (n03126707)'}, (12,3)),
    fer2013=(each('train/{}/{}.jpg', ('angry','happy'))+each('test/{}/t{}.jpg', ('angry','happy')), nothing, {'angry','happy'}, 8))
layouts |= {'mnist_sample':layouts['mnist_tiny']} | {f'{o}-{s}':layouts[o] for o in ('imagenette','imagewoof') for s in (160,320)}

def build(name, d):
    images,more,*_ = layouts[name]
    put(d, *images)
    more(d)
    return d

def test_every_known_set_has_a_layout_here(): assert set(layouts)==set(known_sets)==set(known_table().index)

@pytest.mark.parametrize('name', layouts)
def test_labels_come_out_right(name, tmp_path, fingerprint):
    d = build(name, tmp_path/'d')
    before = fingerprint(d)
    images = known_data(name, d)
    _,_,labels,n = layouts[name]
    assert set(images.df.label)==labels
    counts = images.df.part.value_counts()
    assert images.given==isinstance(n, tuple)
    if images.given: assert (counts['train'],counts['valid'])==n
    else: assert len(images)==n and set(images.df.part)=={'train','valid'}
    assert images.df.file.map(Path.is_file).all() and not images.df.file.duplicated().any()
    dls = images.dataloaders(bs=2, num_workers=0)
    assert set(dls.vocab)==labels and len(dls.one_batch()[1])==2
    assert fingerprint(d)==before

def test_each_image_has_its_own_label(tmp_path):
    "Not only the right set of labels: the right one for each image"
    of = lambda name: known_data(name, build(name, tmp_path/name)).df.assign(
        file=lambda o: o.file.map(lambda f: f.relative_to(tmp_path.resolve()).as_posix())).set_index('file')
    tiny = of('tiny_imagenet').label
    assert (tiny['tiny_imagenet/tiny-imagenet-200/val/images/val_0.JPEG']=='Persian cat'
            and tiny['tiny_imagenet/tiny-imagenet-200/val/images/val_2.JPEG']=='crane (n02012849)')
    assert tiny['tiny_imagenet/tiny-imagenet-200/train/n03126707/images/n03126707_1.JPEG']=='crane (n03126707)'
    flowers = of('flowers')
    assert (flowers.label['flowers/jpg/image_00003.jpg']=='77' and flowers.part['flowers/jpg/image_00006.jpg']=='valid'
            and 'flowers/jpg/image_00009.jpg' not in flowers.index)
    assert of('pets').label['pets/images/english_cocker_spaniel_2.jpg']=='english_cocker_spaniel'
    assert ('cub/images/001.Black_footed_Albatross/3.jpg' not in of('cub').index
            and 'food/images/waffles/3.jpg' not in of('food').index)
    assert (of('caltech256').index.str.count('/')==3).all()

@pytest.mark.parametrize('name', layouts)
def test_the_wrong_folder_says_what_was_expected(name, tmp_path, path):
    with pytest.raises(ValueError, match=f"does not look like '{name}'") as e:
        known_data(name, path/'flipped' if 'mnist' not in name else put(tmp_path, 'a/b.png'))
    assert known_sets[name].layout in str(e.value) and known_sets[name].url in str(e.value)
    with pytest.raises(FileNotFoundError, match='There is no folder .*looks like'): known_data(name, tmp_path/'nowhere')

@pytest.mark.parametrize('name,inner', [
    ('stanford_dogs','Images'), ('asl_alphabet','asl_alphabet_train/asl_alphabet_train'), ('tiny_imagenet','tiny-imagenet-200'),
    ('places_256','data_256'), ('caltech256','256_ObjectCategories')])
def test_the_inner_folder_and_one_above_do_as_well(name, inner, tmp_path):
    d = build(name, tmp_path/'above'/'d')
    a,b,c = (known_data(name, o) for o in (d, d/inner, d.parent))
    assert a.df.equals(b.df) and a.df.equals(c.df)

def test_two_of_them_are_asked_about(tmp_path):
    build('tsinghua_dogs', tmp_path)
    shutil.copytree(tmp_path/'low-resolution', tmp_path/'high-resolution')
    with pytest.raises(ValueError, match="holds 'tsinghua_dogs' 2 times, in high-resolution and low-resolution"):
        known_data('tsinghua_dogs', tmp_path)
    assert known_data('tsinghua_dogs', tmp_path/'low-resolution').path.name=='low-resolution'

@pytest.mark.parametrize('at', ['TrainAndValList','TrainValSplit/TrainAndValList'])
def test_tsinghua_with_the_split_of_its_authors(tmp_path, at):
    build('tsinghua_dogs', tmp_path)
    written({f'{at}/train.lst':''.join(f'.//{b}/n{i}.jpg\n' for b in _thu for i in range(3)),
             f'{at}/validation.lst':''.join(f'.//{b}/n3.jpg\n' for b in _thu)})(tmp_path)
    for o in (tmp_path, tmp_path/'low-resolution'):
        df = known_data('tsinghua_dogs', o).df
        assert (set(df.label)=={'Airedale','Shiba_Dog'}
                and set(df.file[df.part=='valid'].map(lambda f: f.name))=={'n3.jpg'} and len(df)==8)

@pytest.mark.parametrize('name,spoil,words', [
    ('tiny_imagenet', lambda d: (d/'tiny-imagenet-200'/'val'/'images'/'val_1.JPEG').unlink(),
     '1 of 3 images listed in val_annotations.txt are not in'),
    ('tiny_imagenet', lambda d: (d/'tiny-imagenet-200'/'val'/'val_annotations.txt').write_text('val_0.JPEG\n'),
     "line 1: 'val_0.JPEG' should have 2 fields"),
    ('flowers', lambda d: (d/'jpg'/'image_00001.jpg').unlink(), '1 of 8 images listed in train.txt or valid.txt'),
    ('cub', lambda d: (d/'images'/_birds[0]/'1.jpg').unlink(), '1 of 6 images listed in images.txt'),
    ('cub', lambda d: (d/'train_test_split.txt').write_text(''), 'There is no image in'),
    ('food', lambda d: (d/'images'/'waffles'/'0.jpg').unlink(), '1 of 6 images listed in train.txt'),
    ('food', lambda d: (d/'train.txt').write_text('waffles/0 7\nwaffles'),
     "train.txt: 'waffles' should look like 'apple_pie/1005649'"),
    ('cub', lambda d: (d/'images.txt').write_text(''.join(f'{i} Albatross_{i}.jpg\n' for i in range(99))),
     "images.txt: 'Albatross_.*' should look like '001.Black_footed_Albatross"),
    ('stanford_dogs', lambda d: shutil.rmtree(d/'Images'/_breeds[0]), "of one class, 'flat-coated_retriever'"),
])
def test_broken_copies(name, spoil, words, tmp_path):
    d = build(name, tmp_path)
    spoil(d)
    with pytest.raises((ValueError,OSError), match=words): known_data(name, d)

def test_a_line_of_the_authors_that_names_no_breed(tmp_path):
    build('tsinghua_dogs', tmp_path)
    (tmp_path/'TrainAndValList').mkdir()
    for o in ('train','validation'):
        (tmp_path/'TrainAndValList'/f'{o}.lst').write_text('.//200-n000008-Airedale/n0.jpg\nAiredale/n1.jpg\n')
    with pytest.raises(ValueError, match="train.lst: 'Airedale/n1.jpg' should look like './/200-n000008"):
        known_data('tsinghua_dogs', tmp_path)

def test_tiny_imagenet_without_words(tmp_path):
    (build('tiny_imagenet', tmp_path)/'tiny-imagenet-200'/'words.txt').unlink()
    assert set(known_data('tiny_imagenet', tmp_path).df.label)=={'n02012849','n03126707','n02123394'}

def test_files_without_a_label_in_their_name(tmp_path):
    put(build('pets', tmp_path), 'images/stray.jpg')
    with pytest.warns(ProxyWarning, match='1 images .* have no label in their names and are left out, the first is stray.jpg'):
        assert len(known_data('pets', tmp_path))==8

def test_fer_as_a_table_of_pixels(tmp_path):
    table(tmp_path, 'emotion,pixels,Usage\n0,70 80,Training\n', 'fer2013.csv')
    for o in (lambda: known_data('fer2013', tmp_path), lambda: known_data('fer2013', tmp_path/'fer2013.csv'),
              lambda: open_images(tmp_path/'fer2013.csv')):
        with pytest.raises(ValueError, match='it holds pixels, not files. Write the 48×48'): o()

def test_an_archive_is_unpacked_first(tmp_path):
    (tmp_path/'images.tar').write_bytes(b'')
    with pytest.raises(ValueError, match='is an archive: unpack it'): known_data('stanford_dogs', tmp_path/'images.tar')

@pytest.mark.parametrize('name', layouts)
def test_what_pretrained_weights_have_seen(name, tmp_path):
    seen = name.startswith(('imagenette','imagewoof')) or name in ('stanford_dogs','tiny_imagenet','cub')
    d = build(name, tmp_path)
    known_data(name, d) # a warning here would be an error
    if seen:
        with pytest.warns(ProxyWarning, match='ImageNet, which most pretrained weights'): known_data(name, d, pretrained=True)
    else: known_data(name, d, pretrained=True)

def test_subsets_and_folds_of_a_known_set(tmp_path):
    d = build('stanford_dogs', tmp_path)
    assert known_data('stanford_dogs', d, n_per_class=3, seed=1).balance().n.tolist()==[3,3]
    assert known_data('stanford_dogs', d).folds(4).fold(3).df.part.value_counts()['valid']==2

@pytest.mark.parametrize('name,near', [
    ('imagenete','imagenette'), ('Pets','pets'), ('stanford dogs','stanford_dogs'), ('tinyimagenet','tiny_imagenet')])
def test_misspelt_names(name, near):
    with pytest.raises(ValueError, match=f"did you mean '{near}'"): known_data(name)
    with pytest.raises(FileNotFoundError, match=f"did you mean '{near}'"): open_images(name)

def test_names_that_are_none():
    for o in (None, 3, ['pets']):
        with pytest.raises(ValueError, match='No dataset is called'): known_data(o)

# fetched by fastai's own code, from a made archive

@pytest.fixture
def host(tmp_path, monkeypatch):
    "fastai's `untar_data` with a home of its own; `host(name)` puts a made archive where the network would be"
    monkeypatch.setenv('FASTAI_HOME', str(tmp_path/'home'))
    fastai.data.external.fastai_cfg.cache_clear()
    monkeypatch.setattr(fastdownload.core, 'read_checks', lambda _: {})
    asked = []
    def serve(name, top=None):
        url = known_sets[name].url
        stem = top or Path(url).stem
        build(name, tmp_path/'src'/stem)
        with tarfile.open(tmp_path/Path(url).name, 'w:gz') as t: t.add(tmp_path/'src'/stem, stem)
        def save(u, dest, **_):
            asked.append(u)
            if u!=url: raise urllib.error.URLError('no network')
            return shutil.copy(tmp_path/Path(url).name, dest)
        monkeypatch.setattr(fastdownload.core, 'urlsave', save)
        return asked
    yield serve
    fastai.data.external.fastai_cfg.cache_clear()

@pytest.mark.parametrize('name', ['imagenette-160','pets','mnist_tiny','cub'])
def test_fetched_unpacked_and_read(name, host, tmp_path):
    asked = host(name)
    a,b = known_data(name), open_images(name)
    assert asked==[known_sets[name].url] and a.df.equals(b.df), 'the second time nothing is fetched'
    assert set(a.df.label)==layouts[name][2] and (tmp_path/'home').resolve() in a.path.parents

def test_no_network_and_broken_archives(host, tmp_path, monkeypatch):
    host('pets')
    with pytest.raises(OSError, match="'cifar10' cannot be downloaded .*no network.*get https://.*cifar10.tgz .*'cifar10:folder'"):
        known_data('cifar10')
    (tmp_path/'oxford-iiit-pet.tgz').write_bytes((tmp_path/'oxford-iiit-pet.tgz').read_bytes()[:200])
    with pytest.raises(OSError, match="'pets' cannot be downloaded"): known_data('pets')
    for error in (Exception('Downloaded file is corrupt'), EOFError('x')):
        with monkeypatch.context() as m, pytest.raises(OSError, match=f"'pets' cannot be downloaded .*{error}"):
            m.setattr('proxy_attention.data.datasets.untar_data', Mock(side_effect=error))
            known_data('pets')
    with monkeypatch.context() as m, pytest.raises(ZeroDivisionError): # a bug is no matter of the network
        m.setattr('proxy_attention.data.datasets.untar_data', Mock(side_effect=ZeroDivisionError))
        known_data('pets')

@pytest.mark.parametrize('name', [o.name for o in known_sets.values() if not o.fetched])
def test_sets_that_a_user_fetches(name):
    with pytest.raises(ValueError, match=f"'{name}' cannot be downloaded automatically: get it from http.*'{name}:folder'"):
        open_images(name)

# whatever the images are in

def test_open_a_folder_a_table_and_a_known_set(pets, tmp_path):
    d = build('stanford_dogs', tmp_path/'d')
    assert (type(open_images(d/'Images')) is ImageFolder
            and type(open_images(str(pets/'labels.csv'), valid_col='valid', seed=1)) is ImageTable)
    named = open_images(f'stanford_dogs:{d}', seed=3, valid_pct=.4)
    assert set(named.df.label)=={'Chihuahua','flat-coated_retriever'} and named.seed==3 and (named.df.part=='valid').sum()==4
    assert open_images(named) is named
    with pytest.raises(ValueError, match='already opened.*seed'): open_images(named, seed=1)
    tsv = table(pets, (pets/'labels.csv').read_text().replace(',','\t'), 'l.tsv')
    assert len(open_images(tsv))==10

def test_a_folder_comes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put('pets', *each('{}/{}.png', 'ab'))
    assert set(open_images('pets').df.label)=={'a','b'}

def test_overlap_is_told_when_opened_by_name(tmp_path):
    d = build('stanford_dogs', tmp_path)
    with pytest.warns(ProxyWarning, match='is a part of ImageNet'): open_images(f'stanford_dogs:{d}', pretrained=True)

@pytest.mark.parametrize('what,error,words', [
    ('/nowhere/at/all', FileNotFoundError, 'There is no folder and no CSV file /nowhere/at/all.$'),
    ('nowhere', FileNotFoundError, "no known dataset is called 'nowhere'"),
    ('pets:/nowhere', FileNotFoundError, 'There is no folder /nowhere'),
    ('pet:/nowhere', FileNotFoundError, "did you mean 'pets'"),
    ('', TypeError, 'is not a folder'), (None, TypeError, 'None is not a folder'), (3, TypeError, '3 is not a folder'),
])
def test_what_cannot_be_opened(what, error, words):
    with pytest.raises(error, match=words): open_images(what)

def test_arguments_that_do_not_belong(pets):
    with pytest.raises(TypeError, match='`ImageFolder`, which has no argument `fn_col`'): open_images(pets, fn_col='a')
    with pytest.raises(TypeError, match="no argument `label_cool`, did you mean 'label_col'"):
        open_images(pets/'labels.csv', label_cool='a')
    for what,kw in ((pets,dict(path='x')), (pets/'labels.csv',dict(csv='x')),
                    (f'pets:{pets}',dict(path=pets)), ('pets',dict(name='x'))):
        with pytest.raises(TypeError, match=f'already sets `{list(kw)[0]}`'): open_images(what, **kw)
    assert open_images('stanford_dogs', path=build('stanford_dogs', pets/'d')).df.label.nunique()==2
    with pytest.raises(TypeError, match='no argument `parts`'): open_images(pets, parts=[])
    with pytest.raises(ValueError, match='is a file; give the folder'): open_images(pets/'images'/'cat0.jpg')
