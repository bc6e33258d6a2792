"Splits by group, test sets of a configuration, where nothing is written, and odd data told in words"
import os, re
import pytest
from fastai.vision.all import *
from proxy_attention.all import *
from proxy_attention.cli import parser_of, proxy_compare, proxy_sweep, proxy_train
from proxy_attention.core import better
from proxy_attention.core import refuse_inside
from proxy_attention.data.images import ImageSet
from proxy_attention.data.loaders import refuse_among
from proxy_attention.experiment.compare import compare_folder
from proxy_attention.experiment.config import Config, all_settings, changed, from_toml, to_toml
from proxy_attention.experiment.settings import begun_with, notes_on
from proxy_attention.experiment.inputs import images_of, look_at, tests_of
from proxy_attention.experiment.scores import score_of
from proxy_attention.experiment.train import last_of

small = dict(arch='test_resnet', pretrained=False, size=32, workers=0, augment='none')

# ---- groups

def some(top, n=24, per=3, classes='ab', groups='p{}'):
    "Tiny images of `classes` in turn, `per` of each group in a row, and a table of them"
    rows = []
    for i in range(n):
        f = Path(top)/'img'/f'{i:03}.png'
        f.parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (8,8), (i%256,i//256,len(classes))).save(f)
        rows.append((f'img/{f.name}', classes[i%len(classes)], groups.format(i//per)))
    pd.DataFrame(rows, columns=['file','label','who']).to_csv(Path(top)/'x.csv', index=False)
    return Path(top)/'x.csv'

def torn(df, by='part'): return int((df.groupby('group')[by].nunique()>1).sum())

@pytest.mark.parametrize('kw', [{}, dict(valid_pct=.5), dict(subset=.5), dict(n_per_class=9), dict(seed=3, valid_pct=.1)])
def test_no_group_is_on_both_sides(tmp_path, kw):
    "Whatever is kept; and both classes are on either side, about as often as they should be"
    csv = some(tmp_path, 120, 3)
    for seed in range(3):
        images = ImageTable(csv, group_col='who', **(dict(seed=seed)|kw))
        df = images.df
        assert not torn(df) and set(df.query("part=='valid'").label)==set(df.query("part=='train'").label)=={'a','b'}
        share = (df.part=='valid').groupby(df.label).mean()
        assert share.sub(kw.get('valid_pct', .2)).abs().max()<.08, share
    assert torn(ImageTable(csv, **kw).df.assign(group=lambda d: d.file.map(lambda f: int(f.stem)//3))), 'the groups do nothing'

def test_a_split_by_group_is_the_same_again(tmp_path):
    csv = some(tmp_path, 60)
    a,b,c = (ImageTable(csv, group_col='who', seed=s) for s in (1,1,2))
    assert a.df.equals(b.df) and not a.df.part.equals(c.df.part)
    a.save(tmp_path/'run')
    again = ImageTable(csv, group_col='who', seed=5).load(tmp_path/'run')
    assert again.df[['file','part','group']].equals(a.df[['file','part','group']])

def test_rare_classes_of_whole_groups_are_on_both_sides(tmp_path):
    "Twelve classes with two groups each, none shared: a draw of groups at random would miss some"
    files = [tmp_path/f'{i}.png' for i in range(96)]
    labels,groups = [i//8 for i in range(96)], [i//4 for i in range(96)]
    images = ImageSet(tmp_path, files, labels, groups=groups)
    assert not torn(images.df) and (images.df.groupby('label').part.nunique()==2).all()

@pytest.mark.parametrize('how', ['function','files','names','list'])
def test_groups_in_python(path, how):
    files = sorted(get_image_files(path/'train'))
    at = {f.resolve():i//3 for i,f in enumerate(files)}
    def of(f): return at[f.resolve()]
    groups = dict(function=of, files={f.resolve():of(f) for f in files}, list=[of(f) for f in files],
        names={f.relative_to(path/'train').as_posix():of(f) for f in files})[how]
    images = ImageSet(path/'train', [f.resolve() for f in files], [f.parent.name for f in files], groups=groups)
    assert not torn(images.df) and images.df.group.tolist()==[str(of(f)) for f in files]

def test_a_folder_by_groups(path, tmp_path):
    images = open_images(path/'train', groups=lambda f: int(f.stem)%20)
    assert not torn(images.df) and images.df.group.nunique()==20

@pytest.mark.parametrize('k', [2,3,5])
def test_folds_by_group(tmp_path, k):
    images = ImageTable(some(tmp_path, 120), group_col='who').folds(k)
    assert not torn(images.df, 'fold') and images.df.fold.nunique()==k
    for i in range(k): assert not torn(images.fold(i).df) and set(images.fold(i).df.query("part=='valid'").label)=={'a','b'}
    images.save(tmp_path/'run')
    again = ImageTable(tmp_path/'x.csv', group_col='who', seed=9).load(tmp_path/'run')
    assert again.df.fold.tolist()==images.df.fold.tolist() and not torn(again.fold(1).df)
    assert again.folds(k).df.group.equals(again.df.group) # drawn anew over loaded ones

def test_leaving_out_keeps_groups_together(tmp_path):
    images = ImageTable(some(tmp_path, 60), group_col='who')
    images.leave_out(images.df.file[::7])
    assert len(images)==51 and not torn(images.df)

def test_a_subset_holds_many_groups(tmp_path):
    "An image of each group comes before a second one of any"
    csv = some(tmp_path, 120, 3)
    df = ImageTable(csv, group_col='who', n_per_class=10).df
    assert (df.groupby('label').group.nunique()==10).all()

@pytest.mark.parametrize('kw,words', [
    (dict(group_col='whom'), "has no column 'whom', did you mean 'who'?"),
    (dict(group_col='file'), 'cannot hold both the files and their groups'),
    (dict(group_col='who', groups=str), 'Give either `group_col` or `groups`'),
    (dict(groups={}), "has no group (its group is None): give each image a group"),
    (dict(groups=lambda f: np.nan), "has no group (its group is nan)"),
    (dict(groups=['x']), 'There are 1 groups for 24 images'),
    (dict(groups=lambda f: 'one'), "All images of the class 'a' are in one group, 'one'"),
    (dict(groups=lambda f: 'x' if int(f.stem)%2 else str(f)), "All images of the class 'b' are in one group, 'x'"),
    (dict(groups=lambda f: int(f.stem)//12), None), # two groups of both classes: one a side
])
def test_groups_that_cannot_work(tmp_path, kw, words):
    csv = some(tmp_path)
    if words is None: assert ImageTable(csv, **kw).df.part.value_counts().to_dict()==dict(train=12, valid=12)
    else:
        with pytest.raises(ValueError, match=re.escape(words)): ImageTable(csv, **kw)

def test_groups_that_no_division_can_keep(tmp_path):
    "A chain: every group holds the last of some class"
    files = [tmp_path/f'{i}.png' for i in range(6)]
    with pytest.raises(ValueError, match=r"The groups cannot be split so that the class '.' is in both training and validation"):
        ImageSet(tmp_path, files, list('abbcca'), groups=list('xxyyzz'))

def test_a_row_without_a_group(tmp_path):
    csv = some(tmp_path)
    csv.write_text(csv.read_text().replace('p3', ' ', 1))
    with pytest.raises(ValueError, match=r"1 rows have an empty cell in the column 'who', the first is row 11"):
        ImageTable(csv, group_col='who')

def test_folds_of_too_few_groups(tmp_path):
    csv = some(tmp_path, 24, 6)
    with pytest.raises(ValueError, match='There are 4 groups, too few for 5 folds'): ImageTable(csv, group_col='who').folds(5)
    files = [tmp_path/f'{i}.png' for i in range(16)]
    images = ImageSet(tmp_path, files, ['a']*8+['b']*8, groups=[f'g{i//2}' for i in range(8)]+['h','h','h','h','i','i','i','i'])
    with pytest.warns(ProxyWarning, match="groups of the class 'b' are in 2 of 4 folds"): images.folds(4)
    assert not torn(images.df, 'fold')
    one = ImageSet(tmp_path, files, ['a']*8+['b']*8, parts=['train','valid']*8)
    one.df['group'] = [f'g{i}' for i in range(8)]+['h']*8
    with pytest.raises(ValueError, match="All images of the class 'b' are in one group"): one.folds(2)

def test_a_given_split_that_tears_groups(tmp_path):
    "A column, and the split of a run: refused with the group's name; one that keeps them together is taken"
    csv = some(tmp_path, 24)
    df = pd.read_csv(csv).assign(good=lambda d: d.who.isin(['p1','p5']), bad=lambda d: d.index%5==0)
    df.to_csv(csv, index=False)
    assert not torn(ImageTable(csv, group_col='who', valid_col='good').df)
    said = "images of the group 'p0' on both sides, and so for 5 of 8 groups: give either the groups or the split"
    with pytest.raises(ValueError, match=said):
        ImageTable(csv, group_col='who', valid_col='bad')
    ImageTable(csv, valid_col='bad').save(tmp_path/'torn')
    images = ImageTable(csv, group_col='who')
    before = images.df.copy()
    with pytest.raises(ValueError, match='on both sides'): images.load(tmp_path/'torn')
    ImageTable(csv).folds(3).save(tmp_path/'folds')
    with pytest.raises(ValueError, match='on both sides'): images.load(tmp_path/'folds')
    assert images.df.equals(before)

@pytest.mark.parametrize('name', ['patient','Patient_ID','patientid','photographers','burst 2'])
def test_a_column_that_looks_like_groups_is_mentioned(tmp_path, name):
    csv = some(tmp_path)
    csv.write_text(csv.read_text().replace('who', name, 1))
    with pytest.warns(ProxyWarning, match=f"has a column '{name}' with 8 names for 24 images, which is not used.*--group-col"):
        ImageTable(csv)
    ImageTable(csv, group_col=name)
    ImageTable(csv, groups=lambda f: int(f.stem)//6)

@pytest.mark.parametrize('name', ['who','grouping','impatient','videogame'])
def test_columns_of_other_names_are_not(tmp_path, name):
    csv = some(tmp_path)
    csv.write_text(csv.read_text().replace('who', name, 1))
    ImageTable(csv) # a warning would be an error here
    csv = some(tmp_path, per=1)
    csv.write_text(csv.read_text().replace('who', 'patient', 1))
    ImageTable(csv) # each image has its own

# ---- where nothing is written

def test_a_table_of_sibling_folders_leaves_the_folder_between_them_free(tmp_path):
    "Nothing is written in a folder that holds images, and everywhere else something may be"
    for c in 'ab':
        for i in range(4): (tmp_path/c).mkdir(exist_ok=True), Image.new('RGB', (8,8), (i,i,i)).save(tmp_path/c/f'{i}.png')
    pd.DataFrame([(f'{c}/{i}.png',c) for c in 'ab' for i in range(4)], columns=['file','label']).to_csv(tmp_path/'x.csv', index=False)
    images = ImageTable(tmp_path/'x.csv')
    assert images.roots==[(tmp_path/c).resolve() for c in 'ab'] and images.path==tmp_path.resolve()
    dls = images.dataloaders(bs=2, num_workers=0)
    refuse_among(tmp_path/'runs', dls)
    images.save(tmp_path/'runs')
    for o in ('a','b/deep'):
        with pytest.raises(ValueError, match='among the images'): refuse_among(tmp_path/o, dls)
        with pytest.raises(ValueError, match='among the images'): images.save(tmp_path/o)
    assert {'a','b','x.csv','runs'}=={o.name for o in tmp_path.iterdir()}
    subset = ImageTable(tmp_path/'x.csv', subset=.75)
    assert subset.roots==images.roots # images that are not trained on are images

def test_roots_of_a_folder(few, tmp_path):
    "The folder, and where its links lead"
    assert ImageFolder(few).roots==[few.resolve()]
    (tmp_path/'d').mkdir()
    for c in ('3','4'): (tmp_path/'d'/c).symlink_to(few/'train'/c)
    images = ImageFolder(tmp_path/'d')
    assert images.roots==[tmp_path/'d',(few/'train'/'3').resolve(),(few/'train'/'4').resolve()]
    with pytest.raises(ValueError, match='among the images'): images.save(few/'train'/'3'/'run')

def test_a_run_and_its_report_beside_sibling_folders(few, tmp_path, fingerprint):
    "Checkpoints, logs, proxy images and the report lie beside the folders of a table, and none in them"
    for o in ('train','valid'): shutil.copytree(few/o, tmp_path/o)
    files = sorted(get_image_files(tmp_path))
    rows = [(f.relative_to(tmp_path), f.parent.name, f.parent.parent.name) for f in files]
    pd.DataFrame(rows, columns=['file','label','part']).to_csv(tmp_path/'x.csv', index=False)
    before = [fingerprint(tmp_path/o) for o in ('train','valid')]
    args = dict(valid_col='part', steps='1,p,1', share=8, save_images=True, bs=32, say=noop, **small)
    run = train_folder(tmp_path/'x.csv', tmp_path/'runs', **args)
    report_runs([run], n=0, quiet=True)
    assert (run/'report.html').is_file() and [fingerprint(tmp_path/o) for o in ('train','valid')]==before
    with pytest.raises(ValueError, match='among the images'): train_folder(tmp_path/'x.csv', tmp_path/'train'/'3'/'runs', **args)
    with pytest.raises(ValueError, match='among the images'): report_runs([run], tmp_path/'train'/'3'/'r.html', n=0, quiet=True)

def test_nested_roots_are_the_outer_ones(tmp_path):
    for o in ('a/0.png','a/deep/1.png','a/2.png','ab/3.png'):
        (tmp_path/o).parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (8,8)).save(tmp_path/o)
    (tmp_path/'x.csv').write_text('f,l\na/0.png,x\na/deep/1.png,x\na/2.png,y\nab/3.png,y\n')
    assert [o.name for o in ImageTable(tmp_path/'x.csv').roots]==['a','ab']
    for o in (tmp_path/'c', tmp_path): refuse_inside(o, [tmp_path/'a', tmp_path/'ab'])
    with pytest.raises(ValueError, match='among the images'): refuse_inside(tmp_path/'ab'/'x', [tmp_path/'a', str(tmp_path/'ab')])

# ---- odd data

def two_classes(top, n=4):
    for i,c in enumerate('ab'):
        for j in range(n):
            f = Path(top)/c/f'{j}.png'
            f.parent.mkdir(parents=True, exist_ok=True)
            Image.new('RGB', (8,8), (i*100,j,9)).save(f)
    return Path(top)

def test_a_name_that_is_no_text(tmp_path):
    "In a folder of classes, as a class, in a given list, in a test set, and in the path of the images itself"
    d = two_classes(tmp_path/'d')
    bad = os.fsencode(d/'a')+b'/caf\xe9.png'
    Image.new('RGB', (8,8)).save(d/'x.png')
    os.rename(d/'x.png', bad)
    says = r'1 of 9 image files have a name that is not written in UTF-8, the first is .*caf\\xe9.png: rename them'
    with pytest.raises(ValueError, match=says) as e: ImageFolder(d)
    str(e.value).encode()
    good = ImageFolder(two_classes(tmp_path/'e'))
    with pytest.raises(ValueError, match='name that is not written in UTF-8'): good.add_test('plain', d)
    os.remove(bad)
    os.rename(d/'a', os.fsencode(d)+b'/\xff')
    with pytest.raises(ValueError, match='4 of 8 image files have a name'): ImageFolder(d)
    os.rename(d, os.fsencode(tmp_path)+b'/\xfe')
    with pytest.raises(ValueError, match='8 of 8 image files'): ImageFolder(os.fsdecode(os.fsencode(tmp_path)+b'/\xfe'))

def test_a_class_that_cannot_be_read_is_named(tmp_path):
    d = two_classes(tmp_path, 4)
    for i in range(3): (d/'c').mkdir(exist_ok=True), (d/'c'/f'{i}.png').write_bytes(b'no image')
    images = ImageFolder(d)
    wrong = check_images(images.df.file)
    with pytest.warns(ProxyWarning, match="All 3 images of the class 'c' were left out: the model will not know this class"):
        images.leave_out(wrong.file)
    assert set(images.df.label)=={'a','b'}
    ImageFolder(two_classes(tmp_path/'e')).leave_out([tmp_path/'e'/'a'/'0.png']) # a warning would be an error here

def test_a_folder_that_is_a_link_to_another(tmp_path):
    d = two_classes(tmp_path/'d')
    (d/'c').symlink_to(d/'b')
    with pytest.raises(ValueError, match='b and .*c are the same folder .one is a link to the other'): ImageFolder(d)
    (d/'c').unlink()
    (d/'a'/'loop').symlink_to(d/'b')
    with pytest.raises(ValueError, match='are the same folder'): ImageFolder(d)
    (d/'a'/'loop').unlink()
    ImageFolder(d)

def test_empty_class_folders_are_mentioned(tmp_path):
    d = two_classes(tmp_path)
    for o in ('dog','.hidden','__MACOSX'): (d/o).mkdir()
    with pytest.warns(ProxyWarning, match=r'1 folder of .* holds no image \(dog\): the model will not know them'): ImageFolder(d)
    (d/'cat'/'deep').mkdir(parents=True)
    (d/'cat'/'deep'/'x.txt').write_text('')
    with pytest.warns(ProxyWarning, match=r'2 folders of .* hold no image \(cat, dog\)'): ImageFolder(d)
    two_classes(d/'cat'/'in')
    shutil.rmtree(d/'dog')
    shutil.rmtree(d/'a'); shutil.rmtree(d/'b')
    ImageFolder(d) # a folder of folders of images is not empty

def test_the_same_photograph_twice(tmp_path):
    "Under two labels, on both sides, or harmless; two images of one size are no copies"
    d = two_classes(tmp_path, 6)
    images = ImageFolder(d)
    assert not len(images.check_copies()) and len({os.stat(f).st_size for f in images.df.file})<12
    shutil.copy(d/'a'/'0.png', d/'b'/'copy.png')
    df = ImageFolder(d).check_copies()
    assert df.problem.tolist()==['under two labels'] and df.detail[0]=="same bytes as a/0.png; 'b' here, 'a' there"
    (d/'b'/'copy.png').unlink()
    train,valid = (images.df.query(f"part=='{o}' and label=='a'").file.iloc[0] for o in ('train','valid'))
    shutil.copy(train, valid)
    df = images.check_copies()
    assert df.problem.tolist()==['in training and validation'] and {df.file[0].name}<{train.name,valid.name}
    shutil.copy(train, images.df.query("part=='train' and label=='a'").file.iloc[1])
    shutil.copy(images.df.query("part=='valid' and label=='b'").file.iloc[0], valid)
    for f in (train, images.df.query("part=='train' and label=='a'").file.iloc[2]): # of one size, and but for one byte the same
        f.write_bytes(b'x'*9000 + bytes([f==train]) + b'x'*90)
    assert images.check_copies().problem.tolist()==['under two labels']

def test_pictures_of_more_than_8_bits_are_called_what_they_are(tmp_path):
    Image.fromarray(np.random.rand(9,9).astype(np.float32)).save(tmp_path/'a.tif')
    Image.fromarray(np.full((9,9), 70_000, np.int32)).save(tmp_path/'b.tif')
    Image.fromarray(np.full((9,9), 7_000, np.uint16)).save(tmp_path/'c.tif')
    Image.fromarray(np.full((9,9), 7_000, np.uint16)).save(tmp_path/'d.png')
    wrong = check_images(sorted(tmp_path.iterdir()))
    assert wrong.problem.tolist()==['float','32-bit','16-bit','16-bit'] and '0 … 1 becomes black' in wrong.detail[0]
    assert np.asarray(PILImage.create(tmp_path/'a.tif')).max()<=1 # it is

# ---- test sets of a configuration

def test_tests_are_a_section(tmp_path, monkeypatch):
    "As a text and as a dictionary, in TOML and back, by whole paths; replaced as one, and unset"
    monkeypatch.chdir(two_classes(tmp_path))
    cfg = changed(Config(), path='a', tests='plain=a, flip-1=b')
    assert cfg.tests==dict(plain=str(tmp_path/'a'), **{'flip-1':str(tmp_path/'b')})
    assert changed(Config(), path='a', tests=dict(plain=Path('a'), **{'flip-1':'b'}))==cfg==changed(cfg, lr=.001)
    (tmp_path/'c.toml').write_text(to_toml(cfg))
    assert f'[tests]\nplain = "{tmp_path}/a"\n' in to_toml(cfg) and from_toml(tmp_path/'c.toml')==cfg
    assert all_settings(cfg)['tests']==f'plain={tmp_path}/a,flip-1={tmp_path}/b' and changed(Config(), **all_settings(cfg))==cfg
    assert changed(cfg, tests='none').tests==changed(cfg, tests='').tests=={} and all_settings(Config())['tests'] is None
    assert changed(cfg, tests='x=b').tests==dict(x=str(tmp_path/'b'))
    assert 'tests' not in to_toml(Config()) and Config()==changed(Config(), **all_settings(Config()))
    (tmp_path/'a,b=c').mkdir()
    odd = changed(Config(), tests={'x':'a,b=c', 'y':'b'}) # a comma, and an equals sign in a later part of the path
    assert from_toml((tmp_path/'c.toml', (tmp_path/'c.toml').write_text(to_toml(odd)))[0])==odd
    assert changed(Config(), tests=dict(x='p/a,q/r=1')) == changed(Config(), tests='x=p/a,q/r=1')

@pytest.mark.parametrize('tests,words', [
    ('plain', "'plain' of the test sets has no name or no path"),
    ('=x', "'' of the test sets has no name or no path"), ('a b=x', "'a b' is not a valid name"),
    ('valid=x', "cannot be called 'valid'"), ('train=x', "cannot be called 'train'"), ('x=a,x=b', "Two test sets are called 'x'"),
    ('plain.a=x', "'plain.a' is not a valid name of a test set"), (dict(x=3), "'x' of the test sets has no name or no path"),
    (['a'], "tests=['a'] should give a name and a path"), (dict(x='\udcff'), 'cannot be written in UTF-8')])
def test_tests_that_are_none(tests, words, tmp_path):
    with pytest.raises((ValueError,TypeError), match=re.escape(words)) as e: changed(Config(), tests=tests)
    str(e.value).encode()
    with pytest.raises(ValueError, match=r'path=/photos/caf\\xe9 cannot be written in UTF-8'):
        changed(Config(), path=os.fsdecode(b'/photos/caf\xe9'))

@pytest.mark.parametrize('toml,words', [
    ('tests = "a"', "contains tests = 'a', but [tests] should be a section"), ('[tests]\nvalid = "x"', "cannot be called 'valid'"),
    ('[tests]\nx = 3', "'x' of the test sets has no name or no path"),
    ('[test]\nx = "y"', "an unknown section [test], did you mean 'tests'?")])
def test_sections_that_cannot_be(toml, words, tmp_path):
    (tmp_path/'c.toml').write_text(toml)
    with pytest.raises(ValueError, match=re.escape(words)): from_toml(tmp_path/'c.toml')

@pytest.mark.parametrize('f', [proxy_train, proxy_sweep, proxy_compare])
def test_every_command_that_trains_has_tests(f):
    assert {'tests','group_col'}<={o.dest for o in parser_of(f)._actions}

def test_a_run_measures_its_tests_once(few, tmp_path):
    "tests.csv, the columns of `last_of`, the same numbers as by hand; a configuration brings its tests along"
    told = []
    run = train_folder(few, tmp_path/'runs', recipe='none', epochs=1, bs=16, tests=f'plain={few}/plain,flipped={few}/flipped',
        say=told.append, **small)
    df = pd.read_csv(run/'tests.csv')
    assert list(df.columns)==['test','n','accuracy','loss','worst_group','worst'] and df.test.tolist()==['plain','flipped']
    assert df.n.tolist()==[len(get_image_files(few/o)) for o in ('plain','flipped')] and (df.worst<=df.accuracy).all()
    learn = load_run(run)
    files = sorted(get_image_files(few/'flipped'))
    with learn.no_bar(): preds = [learn.predict(f)[0] for f in files]
    right = pd.Series([p==f.parent.name for p,f in zip(preds, files)])
    assert df.accuracy[1]==pytest.approx(right.mean()) and df.worst[1]==right.groupby([f.parent.name for f in files]).mean().min()
    last = last_of(run)
    assert (last['flipped.accuracy'],last['plain.loss'])==(round(df.accuracy[1], 6),round(df.loss[0], 6)) and 'valid_loss' in last
    said = '\n'.join(told)
    assert 'Test set plain: 16 images' in said and 'Test set flipped: loss' in said and '[tests]\n' in said
    cfg = begun_with(run/'config.toml', told.append, lr=.1)
    assert cfg.tests==dict(plain=str(few/'plain'), flipped=str(few/'flipped'))

def test_measuring_changes_nothing_else(few, tmp_path, same):
    "The weights are those of a run without tests, bit for bit"
    a,b = (train_folder(few, tmp_path/'runs', steps='1,p,1', share=8, bs=32, tests=o, say=noop, **small)
        for o in (None, f'plain={few}/plain'))
    a,b = (load_run(o).model.state_dict() for o in (a,b))
    assert same(a, b)

def test_folds_are_tested_each(few, tmp_path):
    run = train_folder(few/'train', tmp_path/'runs', recipe='none', epochs=1, bs=16, folds=2, tests=f'plain={few}/plain', say=noop, **small)
    df = pd.read_csv(run/'folds_result.csv')
    each = [pd.read_csv(run/f'fold_{i}'/'tests.csv').accuracy[0] for i in range(2)]
    assert df['plain.accuracy'].tolist()==pytest.approx(each) and last_of(run)['plain.accuracy']==pytest.approx(np.mean(each), abs=1e-5)

def test_a_run_that_was_cut_off_is_tested_at_its_end(few, tmp_path):
    "Also where everything has moved"
    d = tmp_path/'project'
    shutil.copytree(few, d/'photos')
    run = train_folder(d/'photos', d/'runs', recipe='none', epochs=1, bs=16, tests=f'plain={d}/photos/plain', say=noop, **small)
    was = (run/'tests.csv').read_bytes()
    for o in ('tests.csv','model.safetensors'): (run/o).unlink()
    d.rename(tmp_path/'moved')
    told = []
    resume_run(tmp_path/'moved'/'runs'/run.name, say=told.append)
    assert (tmp_path/'moved'/'runs'/run.name/'tests.csv').read_bytes()==was
    assert f"The test set plain is read from {tmp_path}/moved/photos/plain" in '\n'.join(told)

def test_a_table_to_test_with(few, tmp_path):
    "With the columns of the training table; the same table stands for its rows of test"
    files = sorted(get_image_files(few/'train'))
    part = ['train','train','valid','test']
    rows = pd.DataFrame([(f.parent.name, str(f), part[i%4]) for i,f in enumerate(files)], columns=['digit','f','part'])
    rows.to_csv(tmp_path/'all.csv', index=False)
    new = pd.DataFrame([(f.parent.name, str(f)) for f in sorted(get_image_files(few/'plain'))], columns=['digit','f'])
    new.to_csv(tmp_path/'t.csv', index=False)
    cfg = changed(Config(), path=tmp_path/'all.csv', fn_col='f', label_col='digit', valid_col='part',
        tests=dict(rest=tmp_path/'all.csv', new=tmp_path/'t.csv'))
    images = images_of(cfg)
    tests = tests_of(cfg, images) # no note: no test image is trained on
    assert set(tests)=={'rest','new'} and len(tests['rest'])==(rows.part=='test').sum() and len(tests['new'])==16
    assert {images.path/o for o in tests['rest'].file}=={Path(f) for f in rows.f[rows.part=='test']}
    learn = Learner(images.dataloaders(bs=8, num_workers=0), digits_net(images.df.label.nunique()), metrics=accuracy)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3)
        score = score_of(learn, learn.dls.test_dl(tests['rest'], with_labels=True))
    assert len(learn.recorder.values)==1 and len(learn.recorder.values[0])==3 # the fit's
    assert score['n']==len(tests['rest']) and score['worst']==min(score['groups'].values())==score['groups'][score['worst_group']]
    csv = pd.read_csv(tmp_path/'all.csv').query("part!='test'")
    csv.to_csv(tmp_path/'all.csv', index=False)
    with pytest.raises(ValueError, match="The test set 'rest' cannot be used. .* has no row that the column 'part' marks as test"):
        tests_of(cfg, images_of(cfg))

@pytest.mark.parametrize('spoil,words', [
    (lambda d: shutil.rmtree(d), 'There is no folder and no CSV file'),
    (lambda d: [shutil.rmtree(o) for o in d.iterdir()], 'holds no image'),
    (lambda d: (d/'3').rename(d/'33'), "The test set 'plain', .*, has a class '33', did you mean '3'?"),
    (lambda d: [f.write_bytes(b'') for f in get_image_files(d)], 'No image of the test set .plain., .*, can be read'),
    (lambda d: (shutil.rmtree(d/'4', ignore_errors=True), (d/'4').symlink_to(d/'3')), 'are the same folder')])
def test_test_sets_that_cannot_be(few, tmp_path, spoil, words):
    "Before anything is trained, and nothing is left behind"
    shutil.copytree(few/'plain', tmp_path/'plain')
    spoil(tmp_path/'plain')
    with pytest.raises((ValueError,FileNotFoundError), match=words):
        train_folder(few, tmp_path/'runs', recipe='none', epochs=1, tests=f"plain={tmp_path/'plain'}", say=noop, **small)
    assert not (tmp_path/'runs').exists()

def test_a_test_image_that_cannot_be_read_is_left_out(few, tmp_path):
    shutil.copytree(few/'plain', tmp_path/'plain')
    f = sorted(get_image_files(tmp_path/'plain'))[0]
    f.write_bytes(b'no image')
    told = []
    images,_ = look_at(changed(Config(), path=few, tests=dict(plain=tmp_path/'plain'), workers=0), told.append)
    assert len(images.tests['plain'])==15 and f'1 unreadable and left out, such as {f.name}' in '\n'.join(told)

def test_a_test_image_that_is_trained_on_is_told(few, tmp_path):
    "Under its own name, and through a link"
    (tmp_path/'t').symlink_to(few/'valid')
    images = ImageFolder(few)
    n = len(get_image_files(few/'valid'))
    for o in (few/'valid', tmp_path/'t'):
        with pytest.warns(ProxyWarning, match=rf"{n} of {n} images of the test set 'x' are also in training or validation \(0 and {n}\)"):
            images.add_test('x', o)
    images.add_test('plain', few/'plain') # a warning would be an error here

def test_less_is_better_for_the_loss_of_a_test():
    assert better('flipped.loss') is np.less and better('loss_free.accuracy') is np.greater and better('valid_loss') is np.less

def test_a_comparison_takes_the_tests_of_a_configuration(few, tmp_path):
    run = compare_folder(few, 'no proxy,cutout', 1, f'plain={few}/plain', tmp_path/'runs', epochs=2, bs=32, say=noop, **small)
    df = pd.read_csv(run/'comparison.csv')
    assert set(df.test)=={'valid','plain'} and from_toml(run/'config.toml').tests==dict(plain=str(few/'plain'))
    again = compare_folder(resume=run, say=noop)
    assert pd.read_csv(again/'comparison.csv').equals(df)
    shutil.copytree(few/'plain'/'3', tmp_path/'odd'/'thirty')
    with pytest.raises(ValueError, match="test set 'x', .*odd, has a class 'thirty'"):
        compare_folder(few, tests=f'x={tmp_path}/odd', out=tmp_path/'no', say=noop, **small)

# ---- what is allowed, and perhaps not meant

def test_notes_on_a_configuration():
    assert notes_on(changed(Config(), steps='1,p,2'))==notes_on(changed(Config(), steps='1,p,2', epochs=3))==notes_on(Config())==[]
    note, = notes_on(changed(Config(), steps='1,p,2', epochs=5))
    assert 'the steps 1,p,2 cover 3 epochs, but the fit has 5: 2 epochs at the end would have no proxy step' in note
    note, = notes_on(changed(Config(), size=4))
    assert 'needs a GPU' in ''.join(notes_on(changed(Config(), fp16=True))) or torch.cuda.is_available()
    assert 'size=4 is small' in note and notes_on(changed(Config(), size=32))==[]

def test_images_are_opened_once(few, tmp_path, monkeypatch):
    "A run that is gone on with, and each of its folds, opens only what has another size; also where the images have moved"
    import proxy_attention.experiment.inputs as module
    seen,check = [],module.check_images
    monkeypatch.setattr(module, 'check_images', lambda files, *a, **k: (seen.append(list(files)), check(files, *a, **k))[1])
    shutil.copytree(few/'train', tmp_path/'photos')
    bad,alpha,*_,changing = sorted(get_image_files(tmp_path/'photos'))
    bad.write_bytes(b'no image')
    Image.new('RGBA', (28,28)).save(alpha)
    run = train_folder(tmp_path/'photos', tmp_path/'runs', recipe='none', epochs=1, bs=16, folds=2, say=noop, **small)
    assert len(seen)==1 and len(seen[0])==64
    problems = pd.read_csv(run/'problems.csv').problem.tolist()
    assert sorted(problems)==['transparent','unreadable'] and len(pd.read_csv(run/'checked.csv'))==64
    told = []
    for o in ('folds_result.csv','fold_1/model.safetensors'): (run/o).unlink() # as if it had been cut off
    resume_run(run, say=told.append)
    assert len(seen)==2 and seen[1]==[] and '1 unreadable and left out' in '\n'.join(told) and '1 transparent' in '\n'.join(told)
    Image.new('RGB', (50,50)).save(changing)
    (tmp_path/'photos').rename(tmp_path/'moved')
    images,wrong = look_at(changed(from_toml(run/'config.toml'), path=tmp_path/'moved'), noop, run)
    assert seen[2]==[tmp_path/'moved'/changing.relative_to(tmp_path/'photos')] and wrong.problem.tolist()==['unreadable','transparent']
    (run/'checked.csv').unlink()
    look_at(changed(from_toml(run/'config.toml'), path=tmp_path/'moved'), noop, run)
    assert len(seen[3])==64 # as of a run of an older release
    (run/'checked.csv').write_text('x')
    with pytest.raises(ValueError, match='checked.csv cannot be read .*: delete it, then all images are checked again'):
        look_at(changed(from_toml(run/'config.toml'), path=tmp_path/'moved'), noop, run)

def test_copies_are_told_when_a_run_begins(few, tmp_path):
    d = two_classes(tmp_path/'d', 6)
    shutil.copy(d/'a'/'0.png', d/'b'/'copy.png')
    told = []
    _,wrong = look_at(changed(Config(), path=d, workers=0, size=4, steps='1,p,2', epochs=4), told.append)
    assert told[0].startswith('Note: size=4 is small.')
    assert told[1].startswith('Note: the steps 1,p,2 cover 3 epochs, but the fit has 4: 1 epoch at the end')
    assert wrong.problem.tolist().count('under two labels')==1 and 'tiny' not in wrong.problem.tolist()
    assert "1 under two labels: copy.png (same bytes as a/0.png; 'b' here, 'a' there)" in told

def test_groups_from_the_command_line(tmp_path):
    "Kept together, told, and again when the run is gone on with; a split of another run that tears them is refused"
    csv = some(tmp_path, 60)
    told,args = [], dict(recipe='none', epochs=1, bs=8, **small)
    run = train_folder(csv, tmp_path/'runs', group_col='who', say=told.append, **args)
    split = pd.read_csv(run/'folds.csv').assign(group=lambda d: d.file.str[:3].astype(int)//3)
    assert not torn(split) and re.search(r'Groups of who are never split: \d+ groups train and \d+ validate\.', '\n'.join(told))
    (run/'model.safetensors').unlink()
    resume_run(run, say=noop)
    assert pd.read_csv(run/'folds.csv').equals(split.drop(columns='group'))
    other = train_folder(csv, tmp_path/'runs', say=noop, **args)
    with pytest.raises(ValueError, match="images of the group 'p0?.*' on both sides"):
        train_folder(csv, tmp_path/'no', group_col='who', split=other, say=noop, **args)
    train_folder(csv, tmp_path/'runs', group_col='who', split=run, say=noop, **args)
    with pytest.raises(TypeError, match='has no argument `group_col`'): train_folder(tmp_path/'img', tmp_path/'no', group_col='who', **args)
