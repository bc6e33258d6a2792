"Splits by group, test sets of a configuration, where nothing is written, and odd data told in words"
import os, re
import pytest
from fastai.vision.all import *
from proxy_attention.all import *
from proxy_attention.core import better
from proxy_attention.data.images import ImageSet, refuse_inside
from proxy_attention.data.loaders import refuse_among

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
    (dict(group_col='file'), 'cannot be both the files and their groups'),
    (dict(group_col='who', groups=str), 'Give either `group_col` or `groups`'),
    (dict(groups={}), "is of no group (its group is None): each image should have one"),
    (dict(groups=lambda f: np.nan), "is of no group (its group is nan)"),
    (dict(groups=['x']), 'There are 1 groups and 24 images'),
    (dict(groups=lambda f: 'one'), "All images of the class 'a' are of one group, 'one'"),
    (dict(groups=lambda f: 'x' if int(f.stem)%2 else str(f)), "All images of the class 'b' are of one group, 'x'"),
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
    with pytest.raises(ValueError, match=r"The groups cannot be parted so that the class '.' is in training and in validation"):
        ImageSet(tmp_path, files, list('abbcca'), groups=list('xxyyzz'))

def test_a_row_without_a_group(tmp_path):
    csv = some(tmp_path)
    csv.write_text(csv.read_text().replace('p3', ' ', 1))
    with pytest.raises(ValueError, match=r"1 rows have nothing in the column 'who', the first is row 11"): ImageTable(csv, group_col='who')

def test_folds_of_too_few_groups(tmp_path):
    csv = some(tmp_path, 24, 6)
    with pytest.raises(ValueError, match='There are 4 groups, too few for 5 folds'): ImageTable(csv, group_col='who').folds(5)
    files = [tmp_path/f'{i}.png' for i in range(16)]
    images = ImageSet(tmp_path, files, ['a']*8+['b']*8, groups=[f'g{i//2}' for i in range(8)]+['h','h','h','h','i','i','i','i'])
    with pytest.warns(ProxyWarning, match="groups of the class 'b' are in 2 of 4 folds"): images.folds(4)
    assert not torn(images.df, 'fold')
    one = ImageSet(tmp_path, files, ['a']*8+['b']*8, parts=['train','valid']*8)
    one.df['group'] = [f'g{i}' for i in range(8)]+['h']*8
    with pytest.raises(ValueError, match="All images of the class 'b' are of one group"): one.folds(2)

def test_a_given_split_that_tears_groups(tmp_path):
    "A column, and the split of a run: refused with the group's name; one that keeps them together is taken"
    csv = some(tmp_path, 24)
    df = pd.read_csv(csv).assign(good=lambda d: d.who.isin(['p1','p5']), bad=lambda d: d.index%5==0)
    df.to_csv(csv, index=False)
    assert not torn(ImageTable(csv, group_col='who', valid_col='good').df)
    with pytest.raises(ValueError, match="images of the group 'p0' on both sides, and so of 5 of 8 groups: leave out the groups"):
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
    with pytest.warns(ProxyWarning, match=f"has a column '{name}' with 8 names for 24 images, and it is not used.*--group-col"):
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
    with pytest.warns(ProxyWarning, match="All 3 images of the class 'c' are left out: the model will not know this class"):
        images.leave_out(wrong.file)
    assert set(images.df.label)=={'a','b'}
    ImageFolder(two_classes(tmp_path/'e')).leave_out([tmp_path/'e'/'a'/'0.png']) # a warning would be an error here

def test_a_folder_that_is_a_link_to_another(tmp_path):
    d = two_classes(tmp_path/'d')
    (d/'c').symlink_to(d/'b')
    with pytest.raises(ValueError, match='b and .*c are one folder, since one is a link to the other'): ImageFolder(d)
    (d/'c').unlink()
    (d/'a'/'loop').symlink_to(d/'b')
    with pytest.raises(ValueError, match='are one folder'): ImageFolder(d)
    (d/'a'/'loop').unlink()
    ImageFolder(d)

def test_empty_class_folders_are_mentioned(tmp_path):
    d = two_classes(tmp_path)
    for o in ('dog','.hidden','__MACOSX'): (d/o).mkdir()
    with pytest.warns(ProxyWarning, match=r'1 folder of .* holds no image \(dog\): the model will know no such class'): ImageFolder(d)
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
    assert df.problem.tolist()==['under two labels'] and df.detail[0]=="the same bytes as a/0.png; 'b' here, 'a' there"
    (d/'b'/'copy.png').unlink()
    train,valid = (images.df.query(f"part=='{o}' and label=='a'").file.iloc[0] for o in ('train','valid'))
    shutil.copy(train, valid)
    df = images.check_copies()
    assert df.problem.tolist()==['in training and validation'] and {df.file[0].name}<{train.name,valid.name}
    shutil.copy(train, images.df.query("part=='train' and label=='a'").file.iloc[1])
    shutil.copy(images.df.query("part=='valid' and label=='b'").file.iloc[0], valid)
    assert images.check_copies().problem.tolist()==['under two labels']

def test_pictures_of_more_than_8_bits_are_called_what_they_are(tmp_path):
    Image.fromarray(np.random.rand(9,9).astype(np.float32)).save(tmp_path/'a.tif')
    Image.fromarray(np.full((9,9), 70_000, np.int32)).save(tmp_path/'b.tif')
    Image.fromarray(np.full((9,9), 7_000, np.uint16)).save(tmp_path/'c.tif')
    Image.fromarray(np.full((9,9), 7_000, np.uint16)).save(tmp_path/'d.png')
    wrong = check_images(sorted(tmp_path.iterdir()))
    assert wrong.problem.tolist()==['float','32-bit','16-bit','16-bit'] and '0 … 1 is black' in wrong.detail[0]
    assert np.asarray(PILImage.create(tmp_path/'a.tif')).max()<=1 # it is
