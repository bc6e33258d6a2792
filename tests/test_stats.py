"What a comparison may claim: intervals that cover, corrections that hold, groups that are named"
import json
from itertools import combinations
import numpy as np, pandas as pd, pytest
import matplotlib.pyplot as plt
from scipy import stats
from proxy_attention.experiment.compare import *
from proxy_attention.experiment.statistics import *

def rows(arm, values, test='plain', n=None, **kw):
    "A row a seed"
    return [dict(arm=arm, seed=s, test=test, accuracy=v, worst=v, steps=10) | ({} if n is None else dict(n=n)) | kw
        for s,v in enumerate(values)]

def by_image(right, **kw):
    "A comparison of what was right: (arm, test) → seeds × images"
    df = pd.DataFrame([o for (a,t),v in right.items() for o in rows(a, v.mean(1), t, v.shape[1])])
    return Comparison(df, right={(a,s,t):o for (a,t),v in right.items() for s,o in enumerate(v)}, **kw)

def drawn(rng, seeds=5, images=200, by_seed=0., by_image=0., by_both=0., gain=0.):
    "An arm's rightness, seeds × images, of images of all difficulties: what it has of its own varies by seed, by image, and by both"
    hard = rng.normal(.5, 1, images)
    def arm(gain=0.):
        return hard+gain+rng.normal(0, by_seed, (seeds,1))+rng.normal(0, by_image, images)+rng.normal(0, by_both, (seeds,images))>0
    return arm(gain),arm()

varies = dict(seeds=dict(by_seed=.3, by_both=.3), images=dict(by_image=.7, by_both=.05), neither=dict(by_both=.7),
    all=dict(by_seed=.15, by_image=.4, by_both=.5))

def claims(s): return s.verdict.isin(['helps','harms'])

# ---- paired

@pytest.mark.parametrize('level', [.8,.95,.99])
def test_p_and_interval_are_those_of_scipy(level):
    a,b = np.random.default_rng(0).random((2,7))
    o,ours = paired(a-b, level),stats.ttest_rel(a, b)
    assert np.allclose([o['lo'],o['hi'],o['p']], [*ours.confidence_interval(level), ours.pvalue])

def test_the_floor_of_one_image_has_its_p():
    "Mean 1 % of 100 images: one image in each of five seeds"
    o = paired([.01]*5, image=.01)
    assert np.isclose(o['p'], 2*stats.t.sf(5**.5, 4)) and np.isclose(o['hi']-o['lo'], 2*stats.t.ppf(.975, 4)*.01/5**.5)
    assert np.isnan(paired([.01]*5)['p']) and np.isnan(paired([.01])['p'])

def test_no_seed_at_all():
    "Without a warning of numpy"
    o = paired([])
    assert o['verdict']=='too few to tell' and all(np.isnan(o[k]) for k in ('diff','lo','hi','p'))

def test_an_interval_ends_at_what_is_possible_and_not_before():
    "The arm is always right; the baseline may be worse than these seeds show, so the difference may be larger than their mean"
    base = [.80,.88,.82,.78,.86]
    row = Comparison(pd.DataFrame(rows('no proxy', base)+rows('x', [1.]*5))).stats().query("arm=='x' and test=='plain'").iloc[0]
    assert np.isclose(row.hi, stats.ttest_rel([1.]*5, base).confidence_interval(.95).high) and np.mean(base)+row.hi>1

# ---- Holm

def closed(p):
    "Holm's correction as the closure of Bonferroni's: the largest over all sets of tests that hold this one"
    some = [o for k in range(1, len(p)+1) for o in combinations(range(len(p)), k)]
    return [max(min(1, len(o)*min(p[j] for j in o)) for o in some if i in o) for i in range(len(p))]

@pytest.mark.parametrize('seed', range(5))
def test_holm_is_the_closure_of_bonferroni(seed):
    p = np.random.default_rng(seed).random(6)**4
    assert np.allclose(holm(p), closed(p)) and (holm(p)>=p).all()

def test_what_has_no_p_is_no_test():
    p = [.02,np.nan,.01]
    assert np.allclose(holm(p), [.02,np.nan,.02], equal_nan=True)
    assert len(holm([]))==0 and np.isnan(holm([np.nan])).all() and np.allclose(holm([.01,.01]), .02)

def test_more_arms_make_no_more_false_findings():
    "150 test sets on which none of eight arms does anything: how often is one said to help or harm?"
    rng = np.random.default_rng(1)
    def one(t): # the baseline's seeds are in every difference
        return [o for a in ['no proxy', *map(str, range(8))] for o in rows(a, rng.normal(.7, .02, 5), t)]
    s = Comparison(pd.DataFrame([o for t in range(150) for o in one(f't{t}')])).stats().query("test!='worst group'")
    false = claims(s).groupby(s.test).any().mean()
    alone = ((s.lo>0)|(s.hi<0)).groupby(s.test).any().mean()
    assert false<=.07 and alone>.15, (false,alone)

def test_an_arm_is_judged_by_its_corrected_p():
    base = np.array([.5,.52,.48,.51,.49])
    arms = {'lucky':base+[.01,.02,.01,.03,.005], 'cured':base+[.40,.41,.39,.4,.42]} | {f'idle {i}':base+(-1)**i*np.array(
        [.01,-.01,.02,-.02,.004]) for i in range(6)}
    df = pd.DataFrame([o for a,v in (dict(zip(['no proxy'], [base]))|arms).items() for o in rows(a, v, n=1000)])
    cmp = Comparison(df)
    s = cmp.stats().query("test=='plain'").set_index('arm')
    assert s.loc['lucky','lo']>0 and s.loc['lucky','p']<.05<s.loc['lucky','p_holm']
    assert s.verdict[['lucky','cured']].tolist()==['no effect shown','helps'] and pd.isna(s.loc['no proxy','p_holm'])
    lines = cmp.verdict().splitlines()
    assert lines[0].endswith('An arm helps or harms where p < 0.05, corrected for 8 arms (Holm).')
    lucky = next(o for o in lines if o.startswith('lucky'))
    assert f"corrected p = {s.loc['lucky','p_holm']:.2g}" in lucky
    assert 'corrected p' not in next(o for o in lines if o.startswith('idle 0')) # its interval says as much
    one = Comparison(df[df.arm.isin(['no proxy','lucky'])])
    assert one.stats().query("arm=='lucky' and test=='plain'").verdict.item()=='helps' and 'Holm' not in one.verdict()

def test_over_correction_is_corrected_for_arms_too():
    "One of twelve arms is better on flipped images by luck"
    def arm(a, luck): return rows(a, [.5]*5, 'plain')+rows(a, .5+np.array(luck), 'flipped')
    lucky = [.05,.12,.10,.03,.08]
    idle = [o for i in range(12) for o in arm(f'idle {i}', np.array([.1,-.1,.05,-.05,.02])*(-1)**i)]
    two = arm('no proxy', [-.3,-.31,-.32,-.29,-.3])+arm('x', lucky)
    assert paired(lucky)['lo']>0
    assert Comparison(pd.DataFrame(two)).overcorrected().index.tolist()==['x']
    assert not len(Comparison(pd.DataFrame(two+idle)).overcorrected())

# ---- seeds and images

@pytest.mark.parametrize('how', list(varies))
def test_the_bootstrap_covers(how):
    "Two arms that are alike: how often is zero outside?"
    rng = np.random.default_rng(2)
    found = [bootstrap(*drawn(rng, **varies[how]), times=999) for _ in range(300)]
    out = np.mean([o['lo']>0 or o['hi']<0 for o in found])
    assert out<=.07, out
    assert abs(out-np.mean([o['p']<.05 for o in found]))<.02 # interval and p say the same

def test_none_right_of_few_images_is_not_certain():
    "Of a worst group with none of 20 images right, in both arms and with every seed"
    none = np.tile(np.arange(40)>19, (5,1))
    cmp = by_image({(a,t):o for a in ('no proxy','x') for t,o in (('plain',none[:,20:]),('flipped',none[:,:20]))})
    row = cmp.stats().query("arm=='x' and test=='worst group'").iloc[0]
    assert row.hi_images>.08>row.hi>0>row.lo>-.08>row.lo_images and row.verdict=='no effect shown'

@pytest.mark.parametrize('how', ['seeds','images'])
def test_the_bootstrap_covers_a_gain(how):
    "The true difference is that over many images and seeds"
    rng = np.random.default_rng(3)
    a,b = drawn(rng, 2000, 1000, gain=.3, **varies[how]) if how=='seeds' else drawn(rng, 2, 400_000, gain=.3, **varies[how])
    true,hit,found = a.mean()-b.mean(),[],[]
    for _ in range(300):
        o = bootstrap(*drawn(rng, gain=.3, **varies[how]), times=999)
        hit.append(o['lo']<true<o['hi'])
        found.append(o['lo']>0)
    assert true>.05 and np.mean(hit)>=.93 and np.mean(found)>.1, (true,np.mean(hit),np.mean(found))

def test_a_verdict_holds_for_other_images():
    "100 test sets on which the arms are alike, but not on the images at hand: with five seeds that agree, t over seeds is sure of much"
    rng = np.random.default_rng(4)
    right = {(a,f't{t}'):o for t in range(100) for a,o in zip(('x','no proxy'), drawn(rng, **varies['images']))}
    cmp = by_image(right)
    s,t = (o.stats().query("arm=='x' and test!='worst group'") for o in (cmp, Comparison(cmp.df)))
    assert claims(s).mean()<=.07 and claims(t).mean()>.5, (claims(s).mean(),claims(t).mean())
    assert np.allclose(s[['lo','hi']], t[['lo','hi']]) # the interval over seeds stays what it was
    assert t.lo_images.isna().all() and (s.p>=t.p).all()

def test_a_verdict_on_the_worst_group_holds_for_other_images():
    "30 comparisons of arms that are alike, but not on the images at hand, with four groups of 40 images"
    rng,found = np.random.default_rng(9),[]
    for _ in range(30):
        cmp = by_image({(a,t):o for t in 'abcd' for a,o in zip(('x','no proxy'), drawn(rng, images=40, **varies['images']))})
        found.append([claims(o.stats().query("arm=='x' and test=='worst group'")).item() for o in (cmp, Comparison(cmp.df))])
    over_images,over_seeds = np.mean(found, 0)
    assert over_images<=.07 and over_seeds>.3, (over_images,over_seeds)

def test_a_cure_is_still_found():
    "Of the worst group, too, though the baseline has none of its images right"
    rng = np.random.default_rng(5)
    a,b = drawn(rng, gain=1., **varies['all'])
    cured,sick = np.arange(30)<[[25],[27],[26],[25],[28]],np.zeros((5,30))
    cmp = by_image({('no proxy','plain'):b, ('x','plain'):a, ('no proxy','flipped'):sick, ('x','flipped'):cured})
    s = cmp.stats().query("arm=='x'").set_index('test')
    assert (s.verdict=='helps').all() and (s.lo_images>0).all()
    assert s.lo['worst group']>s.lo_images['worst group']>.5 # 30 images are few

def test_what_a_worst_group_of_few_images_shows():
    "A quarter of the images more, with every seed: five of twenty, or 500 of 2000"
    def worst(n, more): return by_image({('no proxy','plain'):np.tile(np.arange(n)<n//4, (5,1)),
        ('x','plain'):np.tile(np.arange(n)<n//4+more, (5,1))}).stats().query("arm=='x' and test=='worst group'").iloc[0]
    few,many = worst(20, 5),worst(2000, 500)
    assert few['diff']==many['diff']==.25 and few.lo>0 # the seeds agree
    assert few.lo_images<0<many.lo_images and [few.verdict,many.verdict]==['no effect shown','helps']

def test_images_are_drawn_as_scipy_draws_them():
    "With seeds that agree, what is left is a percentile bootstrap of images"
    rng = np.random.default_rng(6)
    a,b = drawn(rng, 1, 400, by_image=.8)
    ours = bootstrap(np.repeat(a, 9, 0), np.repeat(b, 9, 0), .9)
    theirs = stats.bootstrap(((a.astype(int)-b)[0],), np.mean, confidence_level=.9, method='percentile', rng=rng).confidence_interval
    assert np.allclose([ours['lo'],ours['hi']], theirs, atol=.006) and theirs.high-theirs.low>.05

def test_seeds_spread_as_student_says():
    "With images that are alike, what is left is t over seeds"
    right = np.arange(1000)<np.array([[500],[530],[510],[560],[540]])
    base = np.tile(np.arange(1000)<500, (5,1))
    ours = bootstrap(np.repeat(right, 50, 1), np.repeat(base, 50, 1), times=200_000)
    t = stats.ttest_rel(right.mean(1), base.mean(1))
    assert np.allclose([ours['lo'],ours['hi']], t.confidence_interval(.95), atol=.003) and np.isclose(ours['p'], t.pvalue, atol=.01)

def test_the_same_images_give_the_same_interval():
    rng = np.random.default_rng(7)
    a,b = drawn(rng, **varies['all'])
    order = rng.permutation(a.shape[1])
    assert bootstrap(a, b)==bootstrap(a, b)==bootstrap(a[:,order], b[:,order])!=bootstrap(a, b, seed=1)
    other = bootstrap(a[:,order], b) # which image is which counts
    assert other['hi']-other['lo']>bootstrap(a, b)['hi']-bootstrap(a, b)['lo']
    state = np.random.get_state()[1].copy()
    bootstrap(a, b)
    assert (np.random.get_state()[1]==state).all()

def test_odd_images():
    assert np.isnan(list(bootstrap(np.ones((1,9)), np.zeros((1,9))).values())).all()
    assert np.isnan(list(bootstrap(np.ones((3,0)), np.zeros((3,0))).values())).all()
    sure = bootstrap(np.ones((5,9)), np.zeros((5,9)))
    assert sure['lo']<1==sure['hi'] and sure['p']<.001
    same = bootstrap(np.ones((5,9)), np.ones((5,9)))
    assert same['lo']<0<same['hi'] and same['p']>.9
    with pytest.raises(ValueError, match=r'seeds × images, but they have the shape \(9,\)'): bootstrap(np.ones(9), np.zeros(9))

# ---- records

def packed(right): return np.packbits(right).tobytes().hex()

def records(right, **kw):
    "As `run_arm` gives them, of (arm, seed, test) → which images were right"
    recs = {}
    for (a,s,t),o in right.items():
        rec = recs.setdefault((a,s), dict(
            arm=a, seed=s, steps=9, seconds=1., proxies=0, proxy_seconds=0., measures={}, notes=[], tests={}))
        v = float(np.float32(o.mean())) # as torch has it
        rec['tests'][t] = dict(n=len(o), accuracy=v, loss=1., worst=v, groups=dict(all=v), right=packed(o))|kw
    return json.loads(json.dumps(list(recs.values())))

@pytest.fixture
def right():
    rng = np.random.default_rng(8)
    return {(a,s,t):rng.random(n)<p for a,p in (('no proxy',.6),('x',.7)) for s in range(5) for t,n in (('plain',45),('flipped',64))}

def test_what_was_right_is_read(right):
    cmp = Comparison.of(records(right), 'no proxy')
    assert set(cmp.right)==set(right) and all((cmp.right[k]==right[k]).all() and cmp.right[k].dtype==bool for k in right)
    assert 'right' not in cmp.df and 'groups' not in cmp.df
    s = cmp.stats().set_index(['test','arm'])
    ours = bootstrap(*(np.stack([right[a,i,'plain'] for i in range(5)]) for a in ('x','no proxy')))
    assert s.loc[('plain','x'),['lo_images','hi_images']].tolist()==[ours['lo'],ours['hi']] and s.loc[('plain','x'),'p']>=ours['p']
    assert pd.isna(s.loc[('plain','no proxy'),'lo_images']) and pd.isna(cmp.stats('loss').lo_images).all()

def test_the_wider_interval_is_in_the_verdict_and_both_in_the_table(right):
    cmp = Comparison.of(records(right), 'no proxy')
    r = cmp.stats().query("arm=='x' and test=='plain'").iloc[0]
    said,told = cmp.verdict(),cmp.table()
    assert f"plain ({100*r['diff']:+.1f} points, {100*r.lo_images:+.1f} to {100*r.hi_images:+.1f}" in said
    assert "to 'no proxy' over seeds and test images." in said.splitlines()[0]
    assert told.loc['x',('plain','over images too')]==f'[{100*r.lo_images:+.1f}, {100*r.hi_images:+.1f}]'
    assert told.loc['x',('plain','minus no proxy')]==f"{100*r['diff']:+.1f} [{100*r.lo:+.1f}, {100*r.hi:+.1f}]"
    assert told.loc['no proxy',('plain','over images too')]=='' and told.loc['x',('worst group','over images too')].startswith('[')
    old = Comparison(cmp.df)
    assert 'over seeds.' in old.verdict().splitlines()[0] and 'over images too' not in old.table().columns.get_level_values(1)
    assert 'over images too' in cmp._repr_html_()

@pytest.mark.parametrize('gone', ['one','other images'])
def test_where_not_every_seed_is_known_by_image_the_seeds_decide(right, gone):
    recs = records(right)
    if gone=='one': del recs[-1]['tests']['plain']['right']
    else: recs = records({k:v[:40] if k[1]==2 and k[2]=='plain' else v for k,v in right.items()}) # a test set of its own
    cmp = Comparison.of(recs, 'no proxy')
    s = cmp.stats().query("arm=='x'").set_index('test')
    assert pd.isna(s.lo_images['plain']) and s.lo_images['flipped']<s.hi_images['flipped'] and not pd.isna(s.p['plain'])
    assert '(plain, worst group: over seeds)' in cmp.verdict()

@pytest.mark.parametrize('bad', ['00', 'no hex', packed(np.zeros(45, bool)), packed(np.ones(64, bool))])
def test_a_damaged_record_is_told(right, bad):
    recs = records(right)
    recs[3]['tests']['plain']['right'] = bad
    with pytest.raises(ValueError, match=f"record of 'no proxy' with seed 3 is damaged: .* 'plain' do not agree.* Remove it"):
        Comparison.of(recs, 'no proxy')

def test_a_summary_says_what_the_verdict_says(tmp_path):
    "Five seeds agree on images that need not be like others"
    alike = {('no proxy',s,'plain'):np.arange(60)<40 for s in range(5)}
    recs = records(alike|{('x',s,'plain'):np.r_[np.arange(40)>=5, np.arange(20)<12] for s in range(5)})
    (tmp_path/'records').mkdir()
    for o in recs: (tmp_path/'records'/f"{o['arm'].replace(' ', '_')}_{o['seed']}.json").write_text(json.dumps(o))
    (tmp_path/'asked.json').write_text(json.dumps(dict(arms='no proxy, x', seeds=5, tests='')))
    cmp = Comparison.of(recs, 'no proxy')
    cmp.df.to_csv(tmp_path/'comparison.csv', index=False)
    said = {(o['arm'],o['test']):o['verdict'] for o in json.loads(json.dumps(summary_of(tmp_path)))['stats']}
    assert said['x','plain']=='no effect shown' and 'no effect shown on plain' in cmp.verdict()
    assert 'helps on plain' in Comparison(cmp.df).verdict() # the table alone does not know

# ---- the worst group

def worst_of(lows, n=60, arms=('no proxy','x')):
    "A comparison; lows: (arm, seed) → {(test, group): accuracy}, all else is at .9"
    recs = records({(a,s,t):np.arange(n)<.9*n for a in arms for s in range(5) for t in ('plain','flipped')}, worst_n=n)
    for rec in recs:
        for t,o in rec['tests'].items():
            o['groups'] = {g:lows.get((rec['arm'],rec['seed']), {}).get((t,g), .9) for g in ('cat','dog','owl')}
            o['worst'] = min(o['groups'].values())
    return Comparison.of(recs, 'no proxy')

def which(cmp, arm='x'): return cmp.stats().query("test=='worst group' and arm==@arm").which.item()

def test_groups_that_share_the_last_place_are_all_named():
    lows = {('x',s):{('plain','cat'):.1,('flipped','owl'):.1} for s in range(5)}
    assert which(worst_of(lows))=="'cat' of plain or 'owl' of flipped"
    assert which(worst_of(lows), 'no proxy')=="'cat' of plain or 'dog' of plain or 4 more"

def test_groups_that_differ_between_seeds():
    lows = {('x',s):{('plain','cat' if s<2 else 'dog' if s<4 else 'owl'):.1} for s in range(5)}
    assert which(worst_of(lows))=="'cat' of plain or 'dog' of plain (2 of 5 seeds each)"
    # the last place shared with one seed decides
    lows['x',4][('plain','dog')] = .1
    assert which(worst_of(lows))=="'dog' of plain (3 of 5 seeds)"

@pytest.mark.parametrize('n,few', [(19,True), (20,False)])
def test_a_worst_group_of_few_images_is_told(n, few):
    cmp = worst_of({('x',s):{('plain','cat'):.1} for s in range(5)}, n)
    assert which(cmp)=="'cat' of plain"+' (only 19 images)'*few
    assert ('Of a group of fewer than 20 images, one is 5 points or more.' in cmp.verdict())==few
    assert ('only 19 images' in cmp.table(diff=False).to_string())==few

# ---- odd tables

def test_a_row_that_stands_twice_is_refused():
    df = pd.DataFrame(rows('no proxy', [.5,.6])+rows('x', [.5,.6])+rows('x', [.7]))
    with pytest.raises(ValueError, match="two rows for 'x' with seed 0 on 'plain': remove one"): Comparison(df)

def test_the_name_of_the_worst_group_is_taken():
    with pytest.raises(ValueError, match="No test set can be called 'worst group'"):
        Comparison(pd.DataFrame(rows('no proxy', [.5], 'worst group')))

@pytest.mark.parametrize('level', [95,1,0,.2])
def test_a_level_that_is_none_is_refused(level):
    with pytest.raises(ValueError, match=f'level={level} should be a number from 0.5 to 0.999'):
        Comparison(pd.DataFrame(rows('no proxy', [.5])), level=level)

def test_images_without_their_number(right):
    "A table by hand may leave n out"
    cmp = Comparison.of(records(right), 'no proxy')
    s = Comparison(cmp.df.drop(columns=['n','worst_n']), right=cmp.right).stats().query("arm=='x'").set_index('test')
    assert pd.isna(s.lo_images['worst group']) and s.lo_images['plain']==cmp.stats().query("arm=='x' and test=='plain'").lo_images.item()

def test_an_arm_that_shares_no_seed_or_test_set_is_said_to():
    other = [o|dict(seed=o['seed']+10) for o in rows('far', [.9]*5)]
    cmp = Comparison(pd.DataFrame(rows('no proxy', [.5]*5, n=100)+rows('no proxy', [.5]*5, 'flipped', 100)+rows('x', [.6]*5, n=100)+other))
    said = cmp.verdict()
    assert 'far: too few to tell on plain (no common seeds)' in said and 'nan' not in said
    assert 'x: helps on plain (+10.0 points' in said and 'flipped (no common seeds)' in said

def test_arms_in_any_order_of_rows_give_the_same(right):
    cmp = Comparison.of(records(right), 'no proxy')
    mixed = cmp.df.sample(frac=1, random_state=0)
    again = Comparison(mixed, right=cmp.right, groups=cmp.groups).stats().set_index(['arm','test']).sort_index()
    pd.testing.assert_frame_equal(again, cmp.stats().set_index(['arm','test']).sort_index())

@pytest.mark.parametrize('metric,says', [
    ('valid_loss','harms'), ('loss','harms'), ('error_rate','harms'), ('plain.train_loss','harms'), ('ece','harms'), ('f1','helps')])
def test_a_larger_loss_or_error_is_no_help(metric, says):
    "As in a sweep, a checkpoint and a report; what is smaller for the better is no part of 100 %"
    noise = [.01,.03,.02,.04,.03]
    df = pd.DataFrame([o|{metric:m*(.1+e)} for a,m in (('no proxy',1),('x',3)) for o,e in zip(rows(a, [.5]*5), noise)])
    cmp = Comparison(df)
    r, = cmp.stats(metric).query("arm=='x'").to_dict('records')
    assert r['verdict']==says and smaller_is_better(metric)==(says=='harms') and r['diff']>0 and r['lo']>0
    ax, = cmp.plot(metric)
    assert ax.get_xlabel()==(metric if says=='harms' else f'{metric}, %')
    plt.close(ax.figure)
