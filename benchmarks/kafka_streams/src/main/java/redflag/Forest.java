package redflag;

import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.File;
import java.io.IOException;
import java.util.List;

/** The Isolation Forest, as {@code python -m benchmarks.kafka_streams.forest} writes it. */
final class Forest {
    /** The file: the trees, what their depths are held against, and the depth up to which a row is an anomaly. */
    record Model(List<String> features, double average, double anomalyDepth, List<Tree> trees) {}

    /** A tree as arrays, an element a node, node 0 the root; a leaf has left == -1, and stands for its value. */
    record Tree(int[] feature, float[] threshold, int[] left, int[] right, double[] value) {}

    private static final List<String> FEATURES = List.of("amount", "txn_per_hour");

    private final Tree[] trees;
    private final double average;
    private final double anomalyDepth;

    private Forest(Model model) {
        this.trees = model.trees().toArray(Tree[]::new);
        this.average = model.average();
        this.anomalyDepth = model.anomalyDepth();
    }

    static Forest read(File file) throws IOException {
        Model model = new ObjectMapper().readValue(file, Model.class);
        if (!model.features().equals(FEATURES)) {
            throw new IOException(file + " reads " + model.features() + ", and not " + FEATURES);
        }
        return new Forest(model);
    }

    /** What the trees' leaves add up to: the fewer splits isolate a row, the more unusual it is. */
    double depth(float... row) {
        double sum = 0; // tree after tree in float64, as scikit-learn adds them up
        for (Tree tree : trees) {
            int node = 0;
            while (tree.left[node] >= 0) {
                node = row[tree.feature[node]] <= tree.threshold[node] ? tree.left[node] : tree.right[node];
            }
            sum += tree.value[node];
        }
        return sum;
    }

    /** Risk of a row of this depth, 0 to 1, higher is riskier: -score_samples of scikit-learn. */
    double risk(double depth) {
        return Math.pow(2, -depth / average);
    }

    /** Whether scikit-learn's predict says -1. */
    boolean isAnomaly(double depth) {
        return depth <= anomalyDepth;
    }
}
